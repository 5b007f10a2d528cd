"""What goes wrong on the way to the Hub: each failure in one line of its own, and none makes two commits."""

from __future__ import annotations

import logging
import os
import random
import shlex
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from hub_models import ONCE, QUICK, fetch, resolve_hub, weights, write_model
from hub_push import REPO, TOKEN, push
from hub_server import PHASES, HubServer
from huggingface_hub import constants

from fedmr_merge.errors import HubError, PushError
from fedmr_merge.hub.errors import Passing, root_cause
from fedmr_merge.hub.http import Client, Patience
from fedmr_merge.publish.hub import PushOptions, push_to_hub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def failure(hub: HubServer, folder: Path, **options: Any) -> HubError:
    with pytest.raises(HubError) as caught:
        push(hub, folder, **options)
    error = caught.value
    told = "".join(traceback.format_exception(error)) + str(error.hint)
    assert "hf_" not in str(error) + str(error.hint)
    assert "Signature" not in told
    assert "\n" not in str(error)
    return error


def commits(hub: HubServer) -> int:
    return len(hub.repos[REPO].history()) - 1 if REPO in hub.repos else 0


def assert_arrived_once(hub: HubServer, folder: Path) -> None:
    assert commits(hub) == 1
    for path in folder.iterdir():
        assert hub.content(REPO, path.name) == path.read_bytes()


# What the user must mend: nothing is sent, exit code 2


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "no token was given"),
        ("hf_wrong", "the token is not valid"),
        ("hf_reader", "the token of rita may only read"),
        ("hf_narrow", "the token of nina may only read"),
        ("hf_bob", "bob is not a member of alice"),
    ],
)
def test_token_is_checked_before_anything_is_sent(hub: HubServer, model: Path, token: str | None, message: str) -> None:
    hub.add_user("hf_reader", "rita", role="read")
    hub.add_user("hf_narrow", "nina", role="fineGrained", fine_grained={"nina/other": ["repo.write"]})
    hub.add_user("hf_bob", "bob")
    error = failure(hub, model, token=token)
    assert message in str(error)
    assert type(error) is HubError
    assert error.exit_code == 2
    assert error.hint
    assert {method for method, _, _ in hub.log} <= {"GET"}


@pytest.mark.parametrize("token", ["hf_a b", "hf_\n", "hf_ä"])
def test_token_that_is_none(hub: HubServer, model: Path, token: str) -> None:
    assert "characters that no token has" in str(failure(hub, model, token=token))
    assert not hub.log


def test_stored_token_is_used_and_its_file_must_be_readable(hub: HubServer, model: Path) -> None:
    stored = Path(constants.HF_TOKEN_PATH)
    stored.parent.mkdir()
    stored.write_text(f"{TOKEN}\n")
    push(hub, model, token=None)
    assert_arrived_once(hub, model)
    stored.unlink()
    stored.mkdir()
    assert "the stored token cannot be read: Is a directory" in str(failure(hub, model, token=None))


def test_fine_grained_token_that_names_the_repository(hub: HubServer, model: Path) -> None:
    hub.add_user("hf_fine", "alice", role="fineGrained", fine_grained={REPO: ["repo.write"]})
    push(hub, model, token="hf_fine")
    assert_arrived_once(hub, model)


def test_gated_and_private_repositories_of_others(hub: HubServer) -> None:
    hub.add_user("hf_bob", "bob")
    hub.add_repo("bob/gated", {"model.safetensors": weights(0)}, gated=True)
    hub.add_repo("bob/private", {"model.safetensors": weights(0)}, private=True)
    with pytest.raises(HubError, match="access is gated") as gated:
        fetch(resolve_hub("bob/gated", endpoint=hub.endpoint, token=TOKEN), token=TOKEN, patience=QUICK)
    assert f"{hub.endpoint}/bob/gated" in str(gated.value.hint)
    for token in (TOKEN, None):
        with pytest.raises(HubError, match="no such repository, or it is private"):
            resolve_hub("bob/private", endpoint=hub.endpoint, token=token, patience=QUICK)
    assert resolve_hub("bob/private", endpoint=hub.endpoint, token="hf_bob").files


def test_card_that_the_hub_refuses(hub: HubServer, model: Path) -> None:
    card = model / "README.md"
    card.write_text(card.read_text().replace("license: mit", "license: no-such-license"))
    error = failure(hub, model)
    assert '"license" must be one of' in str(error)
    assert type(error) is HubError
    assert not hub.repos, "no empty repository is left behind"


@pytest.mark.parametrize("endpoint", ["http://example.com", "ftp://127.0.0.1", "https://me:secret@example.com", "hub"])
def test_endpoint_that_no_token_may_go_to(model: Path, endpoint: str) -> None:
    with pytest.raises(HubError) as caught:
        push_to_hub(model, REPO, PushOptions(endpoint=endpoint), token=TOKEN)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revision": "a b"}, "is not a name that git accepts"),
        ({"tag": "../up"}, "is not a name that git accepts"),
        ({"revision": "0" * 40}, "is a commit"),
        ({"create_pr": True, "tag": "v1"}, "cannot be combined with --revision or --tag"),
        ({"license": "nonsense"}, "--license 'nonsense': the Hub does not know this licence"),
        ({"license": "Apache-2"}, "did you mean apache-2.0?"),
    ],
)
def test_options_that_make_no_push(hub: HubServer, model: Path, options: dict[str, object], message: str) -> None:
    assert message in str(failure(hub, model, **options))
    assert not hub.log


@pytest.mark.parametrize("name", ["digits", "a/b/c", "alice/", "alice/..", "alice/a--b", "alice/x y", "alice/ä"])
def test_names_that_are_no_repository(model: Path, name: str) -> None:
    with pytest.raises(HubError, match="is not the name of a repository"):
        push_to_hub(model, name)
    with pytest.raises(HubError, match="is 97 characters long; the Hub allows 96"):
        push_to_hub(model, f"alice/{'x' * 97}")
    with pytest.raises(HubError, match=r"cannot end in \.git"):
        push_to_hub(model, "alice/x.git")


def test_names_that_the_hub_spells_otherwise(hub: HubServer, model: Path) -> None:
    hub.add_user("hf_carol", "carol", orgs={"Lab": "write"})
    for name, token, right in (("Alice/digits", TOKEN, "alice/digits"), ("lab/x", "hf_carol", "Lab/x")):
        with pytest.raises(HubError, match="the Hub spells this namespace") as caught:
            push(hub, model, name, token=token)
        assert caught.value.hint == f"push to {right}"
    hub.repos["alice/digits"] = hub.add_repo("alice/Digits")
    with pytest.raises(HubError, match="the Hub calls this repository alice/Digits") as caught:
        push(hub, model)
    assert caught.value.hint == "push to alice/Digits"


# What passes: tried again, then exit code 3 with the command that finishes the push


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(
    "pattern", ["whoami", "/api/models/alice/digits$", "/refs", "/preupload/", "/storage/", "/commit/"]
)
def test_failures_that_pass_are_waited_out(hub: HubServer, model: Path, status: int, pattern: str) -> None:
    hub.fail("GET|POST|PUT", pattern, "answer", status=status, times=2)
    push(hub, model)
    assert_arrived_once(hub, model)


@pytest.mark.parametrize(
    ("status", "message"), [(429, "the rate limit is reached"), (500, "the server failed with status 500")]
)
def test_failures_that_stay_are_told_with_the_command(hub: HubServer, model: Path, status: int, message: str) -> None:
    hub.fail("POST", "/preupload/", "answer", status=status, times=100)
    error = failure(hub, model, tag="v1", private=True)
    assert message in str(error)
    assert isinstance(error, PushError)
    assert error.exit_code == 3
    command = shlex.join(
        ["fedmr-merge", "push", str(model), REPO, "--private", "--tag", "v1", "--endpoint", hub.endpoint]
    )
    assert str(error.hint).endswith(command)
    assert len(hub.requests("POST", "/preupload/")) == QUICK.retries + 1


def test_server_that_asks_to_wait_too_long_is_not_waited_for(hub: HubServer, model: Path) -> None:
    hub.fail("GET", "whoami", "answer", status=429, headers={"Retry-After": "3600"})
    assert "the rate limit is reached" in str(failure(hub, model))
    assert len(hub.log) == 1
    hub.fail("GET", "whoami", "answer", status=429, headers={"RateLimit": '"api";r=0;t=299'})
    error = failure(hub, model)
    assert isinstance(error, PushError)
    assert "in 299 seconds this finishes the push: fedmr-merge push" in str(error.hint)


def test_offline_mode(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is on" in str(failure(hub, model))
    assert not hub.log


def test_nobody_listens(hub: HubServer, model: Path) -> None:
    with pytest.raises(PushError, match="cannot be reached"):
        push(hub, model, endpoint="http://127.0.0.1:9")


def test_only_a_server_that_was_there_before_is_waited_for(
    hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "reached", set())
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for expected in ([1, 2], [1, 2, 4, 8, 16]):
        waits.clear()
        with pytest.raises(PushError, match="cannot be reached"):
            push(hub, model, endpoint="http://127.0.0.1:9", patience=Patience())
        assert waits == expected
        monkeypatch.setattr(Client, "reached", {"127.0.0.1:9"})


@pytest.mark.parametrize("pattern", ["whoami", "/preupload/", "/storage/", "/commit/"])
def test_server_that_hangs_is_given_up(hub: HubServer, model: Path, pattern: str) -> None:
    hub.fail("GET|POST|PUT", pattern, "hang", times=100)
    error = failure(hub, model, patience=Patience(timeout_seconds=0.3, retries=0))
    assert isinstance(error, PushError)
    assert "no answer in time" in str(error)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "pattern", ["/repos/create", "/branch/", "/preupload/", "/batch", "/storage/", "/commit/", "/tag/"]
)
def test_one_cut_anywhere_is_healed_within_the_push(hub: HubServer, model: Path, pattern: str, phase: str) -> None:
    hub.fail("POST|PUT", pattern, phase)
    result = push(hub, model, revision="next", tag="v1")
    assert len(hub.repos[REPO].history("next")) == 2
    assert hub.repos[REPO].refs["refs/tags/v1"] == hub.repos[REPO].refs["refs/heads/next"] == result.commit
    assert sum(fault.times for fault in hub.faults) == 0  # it did happen


@pytest.mark.parametrize("kind", ["lost answer", "half an answer"])
def test_lost_answer_to_a_commit_makes_no_second_one(hub: HubServer, model: Path, kind: str) -> None:
    hub.fail("POST", "/commit/", kind)
    result = push(hub, model)
    assert_arrived_once(hub, model)
    assert result.commit == hub.repos[REPO].refs["refs/heads/main"]
    assert len(hub.requests("POST", "/commit/")) == 1


def test_lost_answer_to_a_pull_request_opens_no_second_one(hub: HubServer, model: Path) -> None:
    push(hub, model)
    (model / "config.json").write_text("{}")
    hub.fail("POST", "/commit/", "lost answer")
    result = push(hub, model, create_pr=True)
    assert len(hub.repos[REPO].pull_requests) == 1
    assert result.commit == hub.repos[REPO].refs["refs/pr/1"]


def test_commit_whose_answer_and_whose_look_are_lost_is_found_by_the_next_push(hub: HubServer, model: Path) -> None:
    hub.fail("POST", "/commit/", "lost answer")
    hub.fail("GET", "/api/models/alice/digits", "before", times=100, skip=5)
    assert isinstance(failure(hub, model), PushError)
    assert commits(hub) == 1
    hub.faults.clear()
    assert push(hub, model).unchanged
    assert_arrived_once(hub, model)


@pytest.mark.parametrize("status", [409, 412])
def test_somebody_else_was_faster(hub: HubServer, model: Path, status: int) -> None:
    hub.add_repo(REPO)
    hub.fail("POST", "/commit/", "answer", status=status)
    error = failure(hub, model)
    assert isinstance(error, PushError)
    assert "somebody else changed the repository" in str(error)
    assert commits(hub) == 0
    push(hub, model)
    assert_arrived_once(hub, model)


def test_commit_on_a_head_that_moved_is_refused_by_its_parent(hub: HubServer, model: Path) -> None:
    repo = hub.add_repo(REPO)
    tree = repo.history()[0].tree | hub.store({"theirs.txt": b"theirs"})
    hub.before = lambda path: (
        "/commit/" in path and repo.commit("refs/heads/main", "theirs", tree, repo.refs["refs/heads/main"])
    )
    assert "somebody else changed the repository" in str(failure(hub, model))
    assert [commit.title for commit in repo.history()] == ["theirs", "initial commit"]
    hub.before = None
    push(hub, model)
    assert hub.content(REPO, "theirs.txt") == b"theirs"


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (403, {}, "this token may not do that"),
        (403, {"X-Error-Code": "GatedRepo"}, "access is gated"),
        (413, {}, "refuses files of this size"),
        (402, {"X-Error-Message": "storage is full"}, "the server refused, with status 402 (storage is full)"),
    ],
)
@pytest.mark.parametrize("pattern", ["/api/models/alice/digits$", "/preupload/", "/commit/"])
def test_refusals_that_the_same_command_cannot_overcome(
    hub: HubServer, model: Path, status: int, headers: dict[str, str], message: str, pattern: str
) -> None:
    hub.fail("GET|POST", pattern, "answer", status=status, headers=headers)
    error = failure(hub, model)
    assert message in str(error)
    assert type(error) is HubError
    assert error.exit_code == 2
    assert "finishes" not in str(error.hint)
    assert (REPO in hub.repos) == (f"{REPO} was created and is still empty" in str(error.hint))


def test_storage_on_plain_http_elsewhere_is_refused(hub: HubServer, model: Path) -> None:
    hub.storage_host = "192.0.2.1"
    assert "leads to plain http at 192.0.2.1" in str(failure(hub, model))


def test_other_bytes_on_the_hub_than_were_sent_are_noticed(hub: HubServer, model: Path) -> None:
    hub.add_repo(REPO)
    other = hub.keep(weights(5))
    make = hub.repos[REPO].commit
    hub.repos[REPO].commit = lambda ref, title, tree, parent, text="": make(
        ref, title, {**tree, "model.safetensors": other}, parent, text
    )  # type: ignore[method-assign]
    error = failure(hub, model)
    assert isinstance(error, PushError)
    assert "model.safetensors: the Hub does not hold what was sent" in str(error)


def test_server_cannot_show_the_token_nor_addresses(
    hub: HubServer, model: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    words = f"no, {TOKEN}: see https://storage/x?X-Amz-Signature=s"
    hub.fail("POST", "/preupload/", "answer", status=403, headers={"X-Error-Message": words})
    assert "no, ***: see" in str(failure(hub, model))
    hub.fail("PUT", "/storage/", "answer", status=503, times=2)
    push(hub, model)
    out, err = capfd.readouterr()
    for text in (out, err, caplog.text):
        assert TOKEN not in text
        assert "Signature" not in text
    assert out == err == ""


def test_thirty_random_cuts_then_the_same_command(hub: HubServer, tmp_path: Path) -> None:
    dice = random.Random(0)
    failed = 0
    for number in range(30):
        folder, repo = write_model(tmp_path / str(number), number, nbytes=4000), f"alice/model-{number}"
        cut, phase, for_good = dice.randrange(13), dice.choice(PHASES), dice.random() < 0.5
        hub.faults.clear()
        hub.fail("GET|POST|PUT", "", phase, skip=cut)
        if for_good:
            hub.fail("GET|POST|PUT", "", "before", skip=cut + 1, times=1000)
        try:
            push(hub, folder, repo, tag="v1", patience=ONCE)
        except PushError:
            failed += 1
        hub.faults.clear()
        result = push(hub, folder, repo, tag="v1", patience=ONCE)
        assert [commit.oid for commit in hub.repos[repo].history()][:-1] == [result.commit]
        assert hub.repos[repo].refs["refs/tags/v1"] == result.commit
        for path in folder.iterdir():
            assert hub.content(repo, path.name) == path.read_bytes()
        assert sorted(tmp_path.glob("*")) == sorted(
            path for path in tmp_path.iterdir() if path.name.isdigit() or path.name == "hf"
        )
    assert failed > 20  # a cut is felt


PUSH = """
import sys
from pathlib import Path
from fedmr_merge import push_to_hub
print(push_to_hub(Path(sys.argv[1]), sys.argv[2]).commit)
"""


def start(hub: HubServer, tmp_path: Path, model: Path) -> subprocess.Popen[str]:
    """Push in a process that is told of the Hub by its environment alone."""
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*"}
    command = [sys.executable, "-c", PUSH, str(model), REPO]
    return subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True)


def test_killed_process_then_the_same_command(hub: HubServer, tmp_path: Path, model: Path) -> None:
    hub.fail("PUT", "/storage/", "hang")
    first = start(hub, tmp_path, model)
    deadline = time.monotonic() + 30
    while not hub.requests("PUT", "/storage/") and time.monotonic() < deadline:
        time.sleep(0.01)
    first.kill()
    first.communicate()
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    second = start(hub, tmp_path, model)
    commit = second.communicate()[0].strip()
    assert second.returncode == 0
    assert commit == hub.repos[REPO].refs["refs/heads/main"]
    assert_arrived_once(hub, model)
    assert before == {path.name: path.read_bytes() for path in model.iterdir()}


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "reset"), TimeoutError("https://storage/?X-Amz-Signature=s")]
)
def test_failures_of_the_xet_storage_pass(error: Exception) -> None:
    cause = root_cause(error)
    assert isinstance(cause, Passing)
    assert "storage failed" in cause.reason
