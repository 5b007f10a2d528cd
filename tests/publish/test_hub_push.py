"""Pushing with the real client: what arrives, and that the same push twice makes one commit."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

import pytest
from hub_models import expand_hub, fetch, resolve_hub, weights, write_cohort, write_model
from hub_push import REPO, push
from hub_server import HubServer

from fedmr_merge.errors import HubError
from fedmr_merge.publish.hub import PushOptions, plan_push


def titles(hub: HubServer, revision: str = "main", repo: str = REPO) -> list[str]:
    return [commit.title for commit in hub.repos[repo].history(revision)][:-1]  # without the initial one


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def test_push_sends_every_byte_in_one_commit(hub: HubServer, model: Path) -> None:
    result = push(hub, model, message="first")
    assert titles(hub) == ["first"]
    names = {path.name for path in model.iterdir()}
    assert set(hub.repos[REPO].history()[0].tree) == names | {".gitattributes"}
    assert all(hub.content(REPO, name) == (model / name).read_bytes() for name in names)
    assert result.commit == hub.repos[REPO].refs["refs/heads/main"]
    assert result.url == f"{hub.endpoint}/{REPO}/commit/{result.commit}"
    assert not result.unchanged
    assert {file.path: file.sha256 for file in result.files} == {
        name: hashlib.sha256((model / name).read_bytes()).hexdigest() for name in names
    }


def test_second_push_makes_no_commit_and_sends_nothing(hub: HubServer, model: Path) -> None:
    first = push(hub, model)
    hub.log.clear()
    second = push(hub, model)
    assert second.unchanged
    assert (second.commit, second.url) == (first.commit, first.url)
    assert len(titles(hub)) == 1
    assert {method for method, _, _ in hub.log} == {"GET"}


def test_changed_push_makes_one_commit_with_what_changed(hub: HubServer, model: Path) -> None:
    push(hub, model)
    (model / "model.safetensors").write_bytes(weights(7))
    hub.log.clear()
    result = push(hub, model, message="second")
    assert titles(hub) == ["second", "Add 3 files"]
    assert hub.content(REPO, "model.safetensors", result.commit) == weights(7)
    assert len(hub.requests("PUT", "/storage/")) == 1


def test_private_repository_is_made_private_and_others_do_not_see_it(hub: HubServer, model: Path) -> None:
    hub.add_user("hf_bob", "bob")
    push(hub, model, private=True)
    assert hub.repos[REPO].private
    with pytest.raises(HubError, match="no such repository, or it is private"):
        resolve_hub(REPO, endpoint=hub.endpoint, token="hf_bob")


def test_private_push_to_a_public_repository_is_refused_before_anything_is_sent(hub: HubServer, model: Path) -> None:
    hub.add_repo(REPO)
    with pytest.raises(HubError, match="exists and is public"):
        push(hub, model, private=True)
    assert {method for method, _, _ in hub.log} == {"GET"}


def test_tag_marks_the_commit_and_stays_where_it_is(hub: HubServer, model: Path) -> None:
    first = push(hub, model, tag="v1")
    assert hub.repos[REPO].refs["refs/tags/v1"] == first.commit
    assert push(hub, model, tag="v1").unchanged
    (model / "config.json").write_text("{}")
    with pytest.raises(HubError, match="the tag v1 stands at commit"):
        push(hub, model, tag="v1")
    assert len(titles(hub)) == 1
    second = push(hub, model, tag="v2")
    assert hub.repos[REPO].refs["refs/tags/v2"] == second.commit != first.commit


def test_branch_is_made_and_pushed_to(hub: HubServer, model: Path) -> None:
    main = push(hub, model)
    (model / "model.safetensors").write_bytes(weights(1))
    branch = push(hub, model, revision="round-000100")
    assert hub.repos[REPO].refs["refs/heads/main"] == main.commit
    assert hub.repos[REPO].refs["refs/heads/round-000100"] == branch.commit
    assert hub.repos[REPO].commits[branch.commit].parent == main.commit
    assert push(hub, model, revision="round-000100").unchanged


def test_branch_of_a_new_repository_and_slashes_in_its_name(hub: HubServer, model: Path) -> None:
    result = push(hub, model, revision="try/one")
    assert hub.repos[REPO].refs["refs/heads/try/one"] == result.commit
    assert resolve_hub(f"{REPO}@try%2Fone", endpoint=hub.endpoint).commit == result.commit


def test_pull_request_leaves_main_alone_and_is_opened_once(hub: HubServer, model: Path) -> None:
    main = push(hub, model)
    (model / "model.safetensors").write_bytes(weights(1))
    first = push(hub, model, create_pr=True)
    assert first.url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert hub.repos[REPO].refs["refs/pr/1"] == first.commit
    assert hub.repos[REPO].refs["refs/heads/main"] == main.commit
    again = push(hub, model, create_pr=True)
    assert (again.unchanged, again.url, again.commit) == (True, first.url, first.commit)
    hub.repos[REPO].pull_requests[0]["status"] = "closed"
    assert push(hub, model, create_pr=True).url.endswith("/discussions/2")


def test_pull_request_that_only_deletes_weights_is_opened_once(hub: HubServer, tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    push(hub, write_cohort(cohort, 3))
    shutil.rmtree(cohort / "slot-02")
    first = push(hub, cohort, create_pr=True)
    assert first.deleted == ("slot-02/model.safetensors",)
    again = push(hub, cohort, create_pr=True)
    assert (again.unchanged, again.url) == (True, first.url)


def test_pull_request_of_somebody_else_and_a_push_to_it(hub: HubServer, model: Path) -> None:
    hub.add_user("hf_bob", "bob")
    push(hub, model)
    (model / "config.json").write_text("{}")
    with pytest.raises(HubError, match="bob is not a member of alice"):
        push(hub, model, token="hf_bob")
    assert push(hub, model, token="hf_bob", create_pr=True).url.endswith("/discussions/1")
    (model / "config.json").write_text("[]")
    result = push(hub, model, revision="refs/pr/1")
    assert hub.repos[REPO].refs["refs/pr/1"] == result.commit
    with pytest.raises(HubError, match="there is no pull request refs/pr/9"):
        push(hub, model, revision="refs/pr/9")


def test_pull_request_to_a_missing_repository(hub: HubServer, model: Path) -> None:
    with pytest.raises(HubError, match="no such repository to propose a change to"):
        push(hub, model, create_pr=True)
    assert not hub.repos


def test_pushed_model_comes_back_byte_for_byte_by_revision(hub: HubServer, model: Path) -> None:
    old = push(hub, model, tag="v1")
    before = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights(3))
    push(hub, model)
    for revision in ("v1", old.commit):
        snapshot = resolve_hub(f"{REPO}@{revision}", endpoint=hub.endpoint)
        assert snapshot.commit == old.commit
        assert snapshot.licence == "mit"
        assert (fetch(snapshot) / "model.safetensors").read_bytes() == before
    newest = fetch(resolve_hub(REPO, endpoint=hub.endpoint))
    assert (newest / "model.safetensors").read_bytes() == weights(3)


def test_twenty_megabytes_by_lfs(hub: HubServer, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "big", nbytes=20_000_000)
    sent: list[int] = []
    result = push(hub, folder, progress=sent.append)
    assert sum(sent) == sum(file.size for file in result.files)
    assert len(sent) > 10  # in pieces
    received: list[int] = []
    snapshot = resolve_hub(REPO, endpoint=hub.endpoint)
    local = fetch(snapshot, progress=received.append)
    assert sum(received) == sum(file.size for file in snapshot.files.values())
    assert (local / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_run_folder_sends_its_global(hub: HubServer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_model(run / "global")
    (run / "recipe.yaml").write_text("name: digits\n")
    write_model(run / "checkpoints" / "fedmr-000001" / "slot-00", 5)
    push(hub, run)
    assert set(hub.repos[REPO].history()[0].tree) - {".gitattributes"} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }


def test_cohort_arrives_as_it_is_and_a_glob_finds_its_slots(hub: HubServer, tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "out", 3)
    push(hub, cohort, revision="round-000100")
    snapshots = expand_hub(f"{REPO}@round-000100/slot-*", endpoint=hub.endpoint)
    assert [snapshot.subfolder for snapshot in snapshots] == ["slot-00", "slot-01", "slot-02"]
    for slot, snapshot in enumerate(snapshots):
        assert (fetch(snapshot) / "model.safetensors").read_bytes() == weights(slot)
    assert push(hub, cohort, revision="round-000100").unchanged


def test_smaller_cohort_takes_the_place_of_a_bigger_one(hub: HubServer, tmp_path: Path) -> None:
    push(hub, write_cohort(tmp_path / "ten", 4))
    hub.repos[REPO].commit(
        "refs/heads/main",
        "mine",
        hub.repos[REPO].history()[0].tree | hub.store({"mine/model.safetensors": weights(99), "notes.txt": b"keep"}),
        hub.repos[REPO].refs["refs/heads/main"],
    )
    result = push(hub, write_cohort(tmp_path / "two", 2))
    assert result.deleted == ("slot-02/model.safetensors", "slot-03/model.safetensors")
    assert {"mine/model.safetensors", "notes.txt"} <= set(hub.repos[REPO].history()[0].tree)
    assert len(expand_hub(f"{REPO}/slot-*", endpoint=hub.endpoint)) == 2
    assert push(hub, tmp_path / "two").unchanged


def test_single_file_takes_the_place_of_shards(hub: HubServer, tmp_path: Path) -> None:
    sharded = write_model(tmp_path / "sharded")
    (sharded / "model.safetensors").rename(sharded / "model-00001-of-00001.safetensors")
    (sharded / "model.safetensors.index.json").write_text(
        '{"weight_map": {"layer.weight": "model-00001-of-00001.safetensors"}}'
    )
    push(hub, sharded)
    result = push(hub, write_model(tmp_path / "single", 1))
    assert set(result.deleted) == {"model-00001-of-00001.safetensors", "model.safetensors.index.json"}
    assert (fetch(resolve_hub(REPO, endpoint=hub.endpoint)) / "model.safetensors").read_bytes() == weights(1)


def test_licence_replaces_that_of_the_card_in_what_is_sent_only(hub: HubServer, model: Path) -> None:
    push(hub, model, license="apache-2.0")
    assert resolve_hub(REPO, endpoint=hub.endpoint).licence == "apache-2.0"
    assert b"license: mit" in (model / "README.md").read_bytes()
    assert hub.content(REPO, "README.md").count(b"license:") == 1
    assert hub.content(REPO, "README.md").endswith(b"# A model\n")
    assert push(hub, model, license="apache-2.0").unchanged


def test_long_listings_are_read_page_by_page(hub: HubServer, tmp_path: Path) -> None:
    hub.page_items = 3
    cohort = write_cohort(tmp_path / "out", 6)
    push(hub, cohort)
    assert push(hub, cohort).unchanged
    assert len(hub.requests("GET", "cursor=")) > 4


def test_member_of_an_organisation(hub: HubServer, model: Path) -> None:
    hub.add_user("hf_carol", "carol", orgs={"lab": "write", "club": "read"})
    push(hub, model, "lab/digits", token="hf_carol")
    with pytest.raises(HubError, match="carol may only read in club"):
        push(hub, model, "club/digits", token="hf_carol")


def test_token_goes_to_the_endpoint_alone(hub: HubServer, model: Path) -> None:
    push(hub, model)
    fetch(resolve_hub(REPO, endpoint=hub.endpoint, token="hf_alice"), token="hf_alice")
    storage = [has_token for _, path, has_token in hub.log if path.startswith("/storage/")]
    assert len(storage) == 2
    assert not any(storage)
    assert all(has_token for _, path, has_token in hub.log if path.startswith("/api/"))


def test_plan_needs_no_network(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a plan went to the network"))
    plan = plan_push(model, REPO, PushOptions(private=True, revision="next", tag="v1"))
    assert [file.path for file in plan.files] == ["README.md", "config.json", "model.safetensors"]
    assert plan.nbytes == sum(path.stat().st_size for path in model.iterdir())
    assert plan.target == f"{plan.endpoint}/{REPO}, branch next, private"
    assert plan.has_card
    assert not plan.faults
    assert plan.command == f"fedmr-merge push {model} {REPO} --private --revision next --tag v1"
    assert list(tmp_path.iterdir()) == [model]  # no staging folder is left


def test_client_is_left_as_it_was(hub: HubServer, model: Path) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import _http, are_progress_bars_disabled

    def state() -> list[object]:
        names = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_SHARED_BLOBS")
        values: list[object] = [getattr(constants, name) for name in names]
        levels = [logging.getLogger(name).level for name in ("huggingface_hub", "httpx2")]
        return [*values, _http._GLOBAL_CLIENT_FACTORY, are_progress_bars_disabled(), *levels]

    before = state()
    push(hub, model)
    with pytest.raises(HubError):
        push(hub, model, token="hf_wrong")
    assert state() == before
