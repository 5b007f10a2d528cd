"""The `publish` stage with a repository: what goes where, and that a failed push loses nothing."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_models import expand_hub
from hub_server import HubServer
from small_run import RECIPE, command, follow

from fedmr_merge.errors import HubError, PushError, RecipeError, UnreachedError
from fedmr_merge.publish import write_card
from fedmr_merge.publish.card_merge import split_card
from fedmr_merge.recipe.run import RoundDone, Run
from fedmr_merge.recipe.schema import parse_recipe

REPO = "alice/digits"


@pytest.fixture(autouse=True)
def here(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub and the token are those of the environment."""
    hub.become_default(monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")

    def draw_nothing(folder: Path) -> None:  # takes longer than all the rest; tests/report looks at figures
        for name in ("curves", "partition"):
            if name == "curves" or (folder / "partition.json").exists():
                (folder / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    monkeypatch.setattr(write_card, "_draw_figures", draw_nothing)


def stages(**publish: Any) -> list[dict[str, Any]]:
    return [{"fedmr": {"rounds": 3}}, {"publish": {"repo": REPO, **publish}}]


def branches(hub: HubServer) -> dict[str, str]:
    refs = hub.repos[REPO].refs if REPO in hub.repos else {}
    return {name.removeprefix("refs/heads/"): commit for name, commit in refs.items() if "heads" in name}


def tree(hub: HubServer, revision: str = "main") -> set[str]:
    commit = hub.repos[REPO].resolve(revision)
    assert commit is not None
    return set(commit.tree) - {".gitattributes"}


def commits(hub: HubServer) -> int:
    return len(hub.requests("POST", "/commit/"))


def test_global_model_goes_to_main(hub: HubServer, tmp_path: Path) -> None:
    messages = follow(tmp_path / "run", stages=stages(private=True, license="mit", tags=["x"]))
    assert hub.repos[REPO].private
    assert set(branches(hub)) == {"main"}
    folder = tmp_path / "run" / "global"
    assert tree(hub) == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in tree(hub) - {"README.md"}:
        assert hub.content(REPO, name) == (folder / name).read_bytes()
    card = hub.content(REPO, "README.md").decode()
    assert f'load_model("{REPO}")' in card
    assert 'license: "mit"' in (split_card(card)[0] or "")
    assert messages[-1].endswith(f"pushed: {hub.endpoint}/{REPO}/commit/{branches(hub)['main']}")
    # The same command again goes on at the end, and makes no second commit.
    assert (
        "is on the Hub already" in follow(tmp_path / "run", stages=stages(private=True, license="mit", tags=["x"]))[-1]
    )
    assert commits(hub) == 1


def test_published_recipe_does_not_push_when_somebody_reproduces_it(hub: HubServer, tmp_path: Path) -> None:
    follow(tmp_path / "run", stages=stages(every=2))
    text = hub.content(REPO, "recipe.yaml").decode()
    assert "repo: null" in text
    assert "every: null" in text
    assert REPO not in text


def test_every_so_many_rounds_a_branch_that_somebody_can_go_on_from(hub: HubServer, tmp_path: Path) -> None:
    follow(tmp_path / "run", stages=stages(what="cohort", every=2))
    assert set(branches(hub)) == {"main", "round-000002"}
    assert not (tmp_path / "run" / "unpushed").exists()
    slots = expand_hub(f"{REPO}@round-000002/slot-*")
    assert [slot.subfolder for slot in slots] == ["slot-00", "slot-01", "slot-02"]
    card = hub.content(REPO, "README.md", "round-000002").decode()
    assert "These are the 3 models of round 2" in card
    [line] = re.findall(r"fedmr-merge recombine .*", card)
    assert shlex.split(line)[2] == f"{REPO}@round-000002/slot-*"
    assert len(hub.content(REPO, "metrics.jsonl", "round-000002").splitlines()) == 2
    assert "These are the 3 models of round 3" in hub.content(REPO, "README.md").decode()


@pytest.mark.parametrize("what", ["global", "cohort"])
def test_a_round_that_is_published_is_evaluated_however_seldom_others_are(
    hub: HubServer, tmp_path: Path, what: str
) -> None:
    training = RECIPE["training"] | {"evaluate_every": 4}
    publish = {"publish": {"repo": REPO, "what": what, "every": 3}}
    follow(tmp_path / "run", training=training, stages=[{"fedmr": {"rounds": 7}}, publish])
    assert set(branches(hub)) == {"main", "round-000003", "round-000006"}
    recorded = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in recorded if "test_accuracy" in line] == [3, 4, 6, 7]
    for round in (3, 6):
        card = hub.content(REPO, "README.md", f"round-{round:06d}").decode()
        assert f"{recorded[round - 1]['test_accuracy']:.2%}" in card.replace(" %", "%")


def test_what_is_published_does_not_decide_how_long_a_stage_lasts(hub: HubServer, tmp_path: Path) -> None:
    """The first evaluation that counts is that of round 2, and the next one ends the stage."""
    training = RECIPE["training"] | {"evaluate_every": 2}
    stage = {"fedmr": {"rounds": 9, "until": {"plateau": {"patience": 1, "min_delta": 1.0}}}}
    for name, every in (("often", 1), ("never", None)):
        follow(tmp_path / name, training=training, stages=[stage, {"publish": {"repo": REPO, "every": every}}])
        assert len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_round_that_was_not_evaluated_is_not_published_when_a_run_is_resumed(hub: HubServer, tmp_path: Path) -> None:
    """As with a run whose recipe published nothing after this round when it was run."""
    changes: dict[str, Any] = {"training": RECIPE["training"] | {"evaluate_every": 10}}
    with Run(parse_recipe(RECIPE | changes | {"stages": stages()}, "small.yaml"), tmp_path / "run") as run:
        next(run.execute())
    messages = follow(tmp_path / "run", stages=stages(every=1), **changes)
    assert messages[0] == "not published, as the global model was not evaluated after this round"
    assert set(branches(hub)) == {"main", "round-000002", "round-000003"}


def test_both_kinds_in_one_commit(hub: HubServer, tmp_path: Path) -> None:
    follow(tmp_path / "run", stages=stages(what="both"))
    assert {"model.safetensors", "config.json", "slot-00/model.safetensors", "slot-02/config.json"} <= tree(hub)
    assert commits(hub) == 1


def test_no_client_information_leaves_the_machine(hub: HubServer, tmp_path: Path) -> None:
    follow(tmp_path / "run", stages=stages(what="both", every=2, client_information=False))
    for revision in branches(hub):
        assert not tree(hub, revision) & {"lineage.jsonl", "partition.json", "partition.png"}


def test_nothing_leaves_the_machine_without_a_repository(hub: HubServer, tmp_path: Path) -> None:
    follow(tmp_path / "run", stages=[{"fedmr": {"rounds": 1}}, {"publish": {"what": "both"}}])
    assert not hub.log


def type_commands(hint: str) -> int:
    """Type the commands that a hint prints; returns how many of them push."""
    pushed = 0
    for typed in map(shlex.split, hint.split("finishes it: ")[1].split(" && ")):
        if typed[:2] == ["rm", "-r"]:
            shutil.rmtree(typed[2])
        else:
            assert typed[:2] == ["fedmr-merge", "push"]
            assert command(*typed[1:], "--quiet") == 0
            pushed += 1
    return pushed


def test_failed_pushes_do_not_stop_the_run_and_the_commands_finish_them(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with Run(parse_recipe(RECIPE | {"stages": stages(every=1, what="both")}, "small.yaml"), folder) as run:
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")  # it was revoked while the run trains
        with pytest.raises(PushError, match="the token is not valid") as caught:
            list(run.execute())
    assert caught.value.exit_code == 3
    assert not hub.repos
    assert (folder / "global" / "model.safetensors").exists()
    assert sorted(path.name for path in (folder / "unpushed" / "2" / REPO).iterdir()) == [
        f"round-00000{r}" for r in (1, 2, 3)
    ]
    hint = str(caught.value.hint)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert type_commands(hint) == 4
    assert not list((folder / "unpushed" / "2" / REPO).iterdir()), "a later run pushes nothing once more"
    assert set(branches(hub)) == {"main", "round-000001", "round-000002", "round-000003"}
    assert commits(hub) == 4


def test_exit_code_is_3_and_the_command_is_printed(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail("POST", "/commit/", "answer", status=403)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RECIPE | {"stages": stages()}))
    assert command("run", tmp_path / "small.yaml", "--out", tmp_path / "run") == 3
    told = capsys.readouterr()
    assert f"fedmr-merge push {tmp_path / 'run' / 'global'} {REPO}" in told.err
    assert "hf_alice" not in told.err + told.out


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_run_that_goes_on_pushes_what_an_earlier_process_could_not(
    version: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = parse_recipe(RECIPE | {"stages": stages(every=1, what="cohort")}, "small.yaml")
    with Run(checked, tmp_path / "run") as run:
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        events = run.execute()
        while not (isinstance(event := next(events), RoundDone) and event.result.round == 2):
            pass
        events.close()  # round 1 could not be pushed, round 2 was not tried
    [waiting] = (tmp_path / "run" / "unpushed" / "2" / REPO).iterdir()
    assert waiting.name == "round-000001"
    if version == "0.1.0":
        waiting.rename(tmp_path / "run" / "unpushed" / waiting.name)
        shutil.rmtree(tmp_path / "run" / "unpushed" / "2")
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    follow(tmp_path / "run", stages=stages(every=1, what="cohort"))
    assert set(branches(hub)) == {"main", "round-000001", "round-000002", "round-000003"}
    assert not (tmp_path / "run" / "unpushed").exists()
    follow(tmp_path / "again", stages=[{"fedmr": {"rounds": 3}}, {"publish": {"what": "cohort"}}])
    for slot in range(3):
        name = f"slot-{slot:02d}/model.safetensors"
        assert hub.content(REPO, name) == (tmp_path / "again" / "cohort" / name).read_bytes(), "as in one go"


def test_what_an_earlier_process_could_not_push_goes_where_its_own_stage_says(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the repository of the stage that comes next, which is public, and whose branches are other models."""
    secret, folder = "alice/secret-cohort", tmp_path / "run"
    both = [
        {"fedavg": {"rounds": 2}},
        {"publish": {"repo": secret, "private": True, "what": "cohort", "every": 2}},
        {"fedmr": {"rounds": 2}},
        {"publish": {"repo": REPO, "every": 4}},
    ]
    with Run(parse_recipe(RECIPE | {"stages": both}, "small.yaml"), folder) as run:
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        events = run.execute()
        while not (isinstance(event := next(events), RoundDone) and event.result.round == 3):
            pass
        events.close()
    waiting = folder / "unpushed" / "2" / secret
    assert sorted(path.name for path in waiting.iterdir()) == ["main", "round-000002"]
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    follow(folder, stages=both)
    assert hub.repos[secret].private
    assert set(hub.repos[secret].refs) == {"refs/heads/main", "refs/heads/round-000002"}
    assert "These are the 1 models of round 2" in hub.content(secret, "README.md").decode()
    assert not hub.repos[REPO].private
    assert set(branches(hub)) == {"main", "round-000004"}
    assert not (folder / "unpushed").exists()


def test_commands_push_the_models_that_their_own_stage_published(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the first stage is written again by the second."""
    first = "alice/first"
    both = [
        {"fedavg": {"rounds": 1}},
        {"publish": {"repo": first, "license": "mit"}},
        {"fedmr": {"rounds": 1}},
        {"publish": {"repo": REPO, "license": "apache-2.0"}},
    ]
    with Run(parse_recipe(RECIPE | {"stages": both}, "small.yaml"), tmp_path / "run") as run:
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(PushError) as caught:
            list(run.execute())
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert type_commands(str(caught.value.hint)) == 2
    for repo, round in ((first, 1), (REPO, 2)):
        assert json.loads(hub.content(repo, "evaluation.json"))["round"] == round
    assert 'license: "mit"' in hub.content(first, "README.md").decode()
    assert 'license: "apache-2.0"' in hub.content(REPO, "README.md").decode()
    before = commits(hub)
    follow(tmp_path / "run", stages=both)  # does the same
    assert commits(hub) == before
    assert not (tmp_path / "run" / "unpushed").exists()


def test_a_push_that_failed_is_done_before_a_newer_one_to_the_same_branch(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("POST", "/commit/", "answer", status=403)
    publish = {"publish": {"repo": REPO}}
    messages = follow(tmp_path / "run", stages=[{"fedavg": {"rounds": 1}}, publish, {"fedmr": {"rounds": 1}}, publish])
    assert "; not pushed: " in messages[0]
    assert messages[1].count("pushed: ") == 2
    assert commits(hub) == 3, "one of them was refused"
    assert json.loads(hub.content(REPO, "evaluation.json"))["round"] == 2
    assert not (tmp_path / "run" / "unpushed").exists()


def test_what_no_stage_wants_pushed_any_more_is_reported_and_kept(hub: HubServer, tmp_path: Path) -> None:
    quiet = [{"fedavg": {"rounds": 1}}, {"publish": {}}]
    follow(tmp_path / "run", stages=quiet)
    waiting = tmp_path / "run" / "unpushed" / "2" / "alice" / "other" / "round-000001"
    waiting.mkdir(parents=True)
    message, _ = follow(tmp_path / "run", stages=quiet)
    assert message == (
        f"not pushed: no `publish` stage of the recipe names alice/other any more; push {waiting} by hand, or remove it"
    )
    assert waiting.exists()
    assert not hub.log


@pytest.mark.parametrize(
    ("token", "message"), [("hf_wrong", "is not valid"), ("hf_bob", "bob is not a member of alice")]
)
def test_what_the_hub_would_refuse_is_refused_before_training(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, message: str
) -> None:
    hub.add_user("hf_bob", "bob")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=message) as caught:
        follow(tmp_path / "run", stages=stages(every=1))
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert {method for method, _, _ in hub.log} == {"GET"}


def test_a_hub_that_does_not_answer_stops_no_training(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmr_merge.recipe.publishing.check_push", _unreached)
    follow(tmp_path / "run", stages=stages())
    assert commits(hub) == 1


def _unreached(*_: object, **__: object) -> None:
    raise UnreachedError("the Hub does not answer")


def test_interrupted_run_pushes_the_same_branch_again_without_a_commit(hub: HubServer, tmp_path: Path) -> None:
    follow(tmp_path / "run", stages=stages(every=3))
    before = commits(hub)
    shutil.rmtree(tmp_path / "run" / "global")
    follow(tmp_path / "run", stages=stages(every=3))
    assert commits(hub) == before


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"every": 2}, "stages[1].publish.every: is about a push, which needs repo"),
        ({"private": True}, "stages[1].publish.private: is about a push, which needs repo"),
        ({"repo": "digits"}, "stages[1].publish.repo: "),
        ({"repo": "https://x.example/a/b"}, "stages[1].publish.repo: "),
        ({"repo": REPO, "every": 0}, "stages[1].publish.every: "),
        ({"what": "all"}, "stages[1].publish.what: "),
        (
            {"license": "Apache 2.0"},
            "stages[1].publish.license: the Hub does not know this licence, did you mean apache-2.0?",
        ),
        ({"endpoint": "https://x.example"}, "stages[1].publish.endpoint: unknown option"),
        ({"token": "hf_x"}, "stages[1].publish.token: unknown option"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE | {"stages": [{"fedmr": {"rounds": 1}}, {"publish": options}]}, "small.yaml")
    assert fault in str(caught.value)
