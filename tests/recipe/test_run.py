"""Runs: recorded, resumed to the byte, refused where they would destroy something."""

import gc
import hashlib
import json
import signal
import time
import weakref
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch
from program import Program, fedmr_merge
from small_checkpoints import tree

from fedmr_merge.checkpoint.tensors import load_tensors
from fedmr_merge.errors import FedmrMergeError, RunError, TrainingError
from fedmr_merge.layers.plan import RecombinationPlan
from fedmr_merge.publish.load import load_model
from fedmr_merge.recipe.run import RoundDone, Run
from fedmr_merge.recipe.schema import Recipe, parse_recipe
from fedmr_merge.recombination.options import PlanOptions
from fedmr_merge.recombination.recombine import recombine
from fedmr_merge.runs.names import Place

STAGES = [{"fedavg": {"rounds": 2}}, {"fedmr": {"rounds": 3}}, {"evaluate": {}}, {"publish": {}}]


def recipe(**changes: Any) -> Recipe:
    raw = {
        "name": "small",
        "seed": 3,
        "data": {"name": "digits", "partition": {"kind": "dirichlet", "clients": 8}},
        "model": {"name": "cnn"},
        "training": {"clients_per_round": 3, "local_epochs": 1},
        "stages": STAGES,
    }
    return parse_recipe(raw | changes, "small.yaml")


def follow(folder: Path, checked: Recipe | None = None, *, rounds: int | None = None) -> list[int]:
    """Run, or go on, and stop after so many rounds as an interruption would; returns the rounds that were run."""
    done = []
    with Run(checked or recipe(), folder) as run:
        events = run.execute()
        for event in events:
            if isinstance(event, RoundDone):
                done.append(event.result.round)
                if rounds is not None and len(done) == rounds:
                    events.close()
                    break
    return done


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "global" / "model.safetensors").read_bytes()).hexdigest()


def log(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one go."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert follow(folder) == [1, 2, 3, 4, 5]
    return folder


def test_the_run_folder_is_complete(whole: Path) -> None:
    names = {path.name for path in whole.iterdir() if path.name != ".lock"}
    assert names == {
        *("recipe.yaml", "environment.json", "partition.json", "task.json", "metrics.jsonl", "lineage.jsonl"),
        *("checkpoints", "evaluation.json", "global"),
    }
    metrics = log(whole, "metrics.jsonl")
    assert [(line["round"], line["stage"], line["method"]) for line in metrics] == [
        (1, 1, "fedavg"),
        (2, 1, "fedavg"),
        (3, 2, "fedmr"),
        (4, 2, "fedmr"),
        (5, 2, "fedmr"),
    ]
    assert all(0 <= line["test_accuracy"] <= 1 for line in metrics)
    evaluation = json.loads((whole / "evaluation.json").read_text())
    assert evaluation["accuracy"] == metrics[-1]["test_accuracy"]


def test_the_lineage_names_clients_and_plans(whole: Path) -> None:
    for line in log(whole, "lineage.jsonl"):
        assert len(set(line["clients"])) == 3
        assert (line["plan"] is not None) == (line["method"] == "fedmr")
    groups = log(whole, "lineage.jsonl")[-1]["plan"]["permutations"]
    assert set(groups) == {"conv1", "conv2", "fc1", "fc2"}


def test_the_newest_checkpoints_are_kept_and_the_last_of_every_stage(whole: Path) -> None:
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {
        "1-fedavg-0002",
        "2-fedmr-0004",
        "2-fedmr-0005",
    }


def test_a_checkpoint_can_be_recombined_by_the_engine(whole: Path, tmp_path: Path) -> None:
    """The models are of a kind that the engine knows, and its plan is the one that the trainer would draw."""
    slots = sorted((whole / "checkpoints" / "2-fedmr-0005").glob("slot-*"))
    outcome = recombine(slots, tmp_path / "out", PlanOptions(seed=3, round=5))
    assert outcome.work.plan == RecombinationPlan.from_json(log(whole, "lineage.jsonl")[-1]["plan"])
    assert outcome.work.grouping.found == "as the trainer wrote it into the file's metadata"


@pytest.mark.parametrize("stops", [[1], [2], [3], [1, 1, 1, 1]])
def test_an_interrupted_run_ends_with_the_same_bytes(whole: Path, tmp_path: Path, stops: list[int]) -> None:
    for rounds in stops:
        follow(tmp_path / "run", rounds=rounds)
    rest = follow(tmp_path / "run")
    assert rest, "something was left to do"
    assert digest(tmp_path / "run") == digest(whole)
    for name in ("metrics.jsonl", "lineage.jsonl"):
        lines = [[line | {"seconds": 0} for line in log(folder, name)] for folder in (tmp_path / "run", whole)]
        assert lines[0] == lines[1]


def test_a_stage_may_end_with_an_interruption(whole: Path, tmp_path: Path) -> None:
    """Stopped behind the last round, with only evaluation and publishing to do."""
    follow(tmp_path / "run", rounds=5)
    assert not (tmp_path / "run" / "global").exists()
    assert follow(tmp_path / "run") == []
    assert digest(tmp_path / "run") == digest(whole)


def test_a_finished_run_stays_as_it_is(whole: Path) -> None:
    before = digest(whole)
    assert follow(whole) == []
    assert digest(whole) == before


def test_checkpoints_can_be_thinned(whole: Path, tmp_path: Path) -> None:
    training = {"clients_per_round": 3, "local_epochs": 1, "checkpoint_every": 2}
    thin = recipe(training=training)
    with Run(thin, tmp_path / "run") as run:
        events = run.execute()
        assert [event.result.round for event in islice(events, 3) if isinstance(event, RoundDone)] == [1, 2, 3]
        written = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name[0] != "."}
        assert written == {"1-fedavg-0002"}
        events.close()
    assert follow(tmp_path / "run", thin) == [4, 5], "an orderly end saves the rounds that are done"
    assert digest(tmp_path / "run") == digest(whole)


def test_recalibration_changes_the_global_model_of_a_network_with_statistics(tmp_path: Path) -> None:
    stages = [{"fedmr": {"rounds": 1}}, {"recalibrate": {"batches": 4}}, {"publish": {}}]
    changes = {"model": {"name": "resnet20"}, "data": {"name": "digits", "partition": {"kind": "iid", "clients": 40}}}
    follow(tmp_path / "run", recipe(stages=stages, **changes))
    before = load_tensors(tmp_path / "run" / "checkpoints" / "1-fedmr-0001" / "global" / "model.safetensors")
    after = load_tensors(tmp_path / "run" / "global" / "model.safetensors")
    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"running_mean", "running_var"}


@pytest.mark.parametrize(
    ("stages", "privacy", "message"),
    [
        ([{"recalibrate": {"batches": 9999}}], None, "9999 batches of"),
        ([{"fedavg": {"rounds": 1, "selection": "by_loss"}}], {"clip": 1.0, "noise_multiplier": 1.0}, "by_loss"),
        (
            [{"fedmr": {"rounds": 1}}],
            {"kind": "central", "clip": 1.0, "noise_multiplier": 1.0},
            "in their sum, and fedmr",
        ),
    ],
)
def test_what_a_later_stage_cannot_do_is_told_before_the_first(
    tmp_path: Path, stages: list[Any], privacy: Any, message: str
) -> None:
    training = {"clients_per_round": 2, "device": "cpu", "privacy": privacy}
    with pytest.raises(TrainingError, match=message):
        Run(recipe(stages=[{"fedavg": {"rounds": 1}}, *stages], training=training), tmp_path / "run")


def test_the_models_of_a_checkpoint_can_be_recombined_and_loaded(whole: Path, tmp_path: Path) -> None:
    slots = sorted((whole / "checkpoints" / "2-fedmr-0005").glob("slot-*"))
    recombine(slots, tmp_path / "recombined")
    mean = load_model(tmp_path / "recombined" / "global")
    kept = load_model(whole / "checkpoints" / "2-fedmr-0005" / "global")
    for own, other in zip(mean.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_another_recipe_is_refused_with_the_difference(whole: Path) -> None:
    with pytest.raises(RunError, match=r"belongs to another recipe: seed: 3 → 4$") as caught:
        Run(recipe(seed=4), whole)
    assert "--fresh" in str(caught.value.hint)


def test_fresh_starts_anew(tmp_path: Path) -> None:
    follow(tmp_path / "run", rounds=1)
    with Run(recipe(seed=4), tmp_path / "run", fresh=True) as run:
        assert run.resumed_from is None
    assert "seed: 4" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_fresh_removes_nothing_when_the_folder_holds_something_else(tmp_path: Path) -> None:
    follow(tmp_path / "run", rounds=1)
    for name in ("thesis.txt", "b", "c", "d"):
        (tmp_path / "run" / name).write_text("years of work")
    before = tree(tmp_path / "run")
    with pytest.raises(RunError, match=r"holds what no run writes: b, c, d and 1 more") as caught:
        Run(recipe(seed=4), tmp_path / "run", fresh=True)
    assert "move it elsewhere" in str(caught.value.hint)
    assert tree(tmp_path / "run") == before


def test_fresh_removes_nothing_when_the_new_run_cannot_start(tmp_path: Path) -> None:
    follow(tmp_path / "run", rounds=1)
    before = tree(tmp_path / "run")
    with pytest.raises(FedmrMergeError, match="nowhere"):
        Run(recipe(model={"name": "cnn", "init": "nowhere.safetensors"}), tmp_path / "run", fresh=True)
    assert tree(tmp_path / "run") == before


@pytest.mark.parametrize("out", ["new/runs/run", "kept/run", "empty"])
def test_a_run_that_cannot_start_leaves_no_folder_that_it_made(tmp_path: Path, out: str) -> None:
    for name in ("kept", "empty"):
        (tmp_path / name).mkdir()
    with pytest.raises(FedmrMergeError, match="nowhere"):
        Run(recipe(model={"name": "cnn", "init": "nowhere.safetensors"}), tmp_path / out)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "kept"]


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(RunError, match="is not empty and not a run folder"):
            Run(recipe(), tmp_path, fresh=fresh)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("name", [".partition.json.ab12cd_x", ".recipe.yaml.staging-0123456789abcdef"])
def test_what_a_run_left_that_was_killed_in_its_first_operations_is_removed(
    tmp_path: Path, name: str, locked: bool
) -> None:
    """Versions 0.1.0 and 0.2.0 name such files differently; the lock may have gone."""
    (tmp_path / name).write_text("{")
    if locked:
        (tmp_path / ".lock").touch()
    with Run(recipe(), tmp_path):
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", [".thesis.txt.ab12cd_x", ".global-old"])
def test_what_looks_like_a_leftover_and_may_be_the_users_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(RunError, match="is not empty and not a run folder"):
        Run(recipe(), tmp_path)
    assert (tmp_path / name).exists()


def test_a_file_of_the_users_with_a_name_of_ours_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "partition.json").write_text("years of work")
    for _ in range(2):  # the second time, nothing of the first may make the folder look like a killed run's
        with pytest.raises(RunError, match="is not empty and not a run folder"):
            Run(recipe(), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["partition.json"]
    assert (tmp_path / "partition.json").read_text() == "years of work"


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with Run(recipe(), tmp_path / "run"), pytest.raises(RunError, match="another process is running here"):
        Run(recipe(), tmp_path / "run")


def test_a_run_goes_back_to_the_checkpoint_before_a_damaged_one(whole: Path, tmp_path: Path) -> None:
    follow(tmp_path / "run", rounds=2)
    state = tmp_path / "run" / "checkpoints" / "1-fedavg-0002" / "state.json"
    state.write_text("{")
    with Run(recipe(), tmp_path / "run") as run:
        assert run.resumed_from == Place(1, 0, "fedavg")
        [note] = run.warnings()
        assert "1-fedavg-0002/state.json: damaged: not JSON" in note
        assert "the run goes back to round 1" in note
    assert follow(tmp_path / "run") == [2, 3, 4, 5]
    assert digest(tmp_path / "run") == digest(whole)


def test_a_run_goes_on_with_the_threads_it_began_with(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        follow(tmp_path / "run", rounds=1)
        torch.set_num_threads(2)
        with Run(recipe(), tmp_path / "run") as run:
            assert torch.get_num_threads() == 1
            assert run.warnings() == []
    finally:
        torch.set_num_threads(before)


def test_killed_in_the_middle_and_run_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL, twice at arbitrary moments, in other processes than the one that runs it in one go."""
    checked = small_runs.recipe(stages=[{"fedavg": {"rounds": 2}}, {"fedmr": {"rounds": 10}}, {"publish": {}}])
    whole, folder = tmp_path / "whole", tmp_path / "run"
    (tmp_path / "tiny.yaml").write_text(checked.to_yaml())
    killed = 0
    for wait in (0.01, 0.2):
        checkpoints = folder / "checkpoints"
        before = set(checkpoints.iterdir()) if checkpoints.exists() else set()
        process = Program("run", "tiny.yaml", "--out", "run", cwd=tmp_path)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.is_running:
            if checkpoints.exists() and set(checkpoints.iterdir()) - before:
                time.sleep(wait)
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        killed += process.wait().returncode == -signal.SIGKILL
    assert killed, "it was over before it could be killed"
    assert fedmr_merge("run", "tiny.yaml", "--out", "run", cwd=tmp_path).returncode == 0
    follow(whole, checked)
    assert digest(folder) == digest(whole)
    assert not list(folder.rglob(".*staging*")), "nothing half-written is left"


@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_the_digits_recipe_learns(tmp_path: Path, rounds: int) -> None:
    """The main job, as a user types it: by default the first 12 of its 60 rounds."""
    done = fedmr_merge("run", "digits", "--set", f"stages[1].fedmr.rounds={rounds}", "-o", "digits", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = log(tmp_path / "digits", "metrics.jsonl")
    assert len(metrics) == 10 + rounds
    assert metrics[-1]["test_accuracy"] > (0.93 if rounds == 50 else 0.75)
    for word in ("model.safetensors", "README.md", "curves.png", "push", "recombine", "resume"):
        assert word in done.stdout


def test_a_stage_ends_when_its_criterion_is_met(tmp_path: Path) -> None:
    """Within ten rounds an accuracy cannot rise by one twice: the stage is over after the second round."""
    until = {"plateau": {"patience": 1, "min_delta": 1.0}}
    checked = recipe(stages=[{"fedavg": {"rounds": 10, "until": until}}, {"fedmr": {"rounds": 2}}, {"publish": {}}])
    assert follow(tmp_path / "a", checked) == [1, 2, 3, 4]
    assert [line["method"] for line in log(tmp_path / "a", "metrics.jsonl")] == ["fedavg"] * 2 + ["fedmr"] * 2
    for rounds in (1, 1, 1):
        follow(tmp_path / "b", checked, rounds=rounds)
    assert follow(tmp_path / "b", checked) == [4]
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_a_run_can_start_from_the_models_of_another(whole: Path, tmp_path: Path) -> None:
    """K checkpoints, as the engine or another run left them, are what the first round dispatches."""
    slots = sorted(str(path) for path in (whole / "checkpoints" / "2-fedmr-0005").glob("slot-*"))
    checked = recipe(model={"name": "cnn", "init": slots}, stages=[{"fedmr": {"rounds": 1}}])
    follow(tmp_path / "run", checked)
    first = log(tmp_path / "run", "metrics.jsonl")[0]
    cold = log(whole, "metrics.jsonl")[0]
    assert first["train_loss"] < cold["train_loss"]
    with pytest.raises(TrainingError, match="2 models cannot be dispatched to 3 clients"):
        follow(tmp_path / "other", recipe(model={"name": "cnn", "init": slots[:2]}))


def test_no_state_is_held_for_longer_than_until_the_next_round(tmp_path):
    """Not by a cycle that waits for the garbage collector either: a state has all models of a round."""
    follow(tmp_path, recipe(stages=[{"fedmr": {"rounds": 4}}]), rounds=1)
    gc.disable()
    try:
        states = []
        with Run(recipe(stages=[{"fedmr": {"rounds": 4}}]), tmp_path) as run:
            states.append(weakref.ref(run._resumed.state))
            for event in run.execute():
                states.append(weakref.ref(event.result.state))
                assert [state() is None for state in states[:-2]] == [True] * (len(states) - 2)
        assert len(states) == 4
    finally:
        gc.enable()
