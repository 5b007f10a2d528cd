"""`keep: best`: a stage that ends with the models of its best round, by what is held out for that."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch
from small_runs import follow, models, recipe

from fedmr_merge.checkpoint.tensors import load_tensors
from fedmr_merge.errors import RunError, TrainingError
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.rounds import begin_stage, run_rounds
from fedmr_merge.recipe.identity import identity
from fedmr_merge.recipe.prepare import prepare
from fedmr_merge.recipe.run import Run
from fedmr_merge.recipe.run_recipe import run_recipe
from fedmr_merge.recipe.schema import Recipe
from fedmr_merge.runs.checkpoints import load_state
from fedmr_merge.runs.names import Place, find_checkpoints
from fedmr_merge.runs.resume import fork_run

#: With this rate the accuracy goes up and down, so that a round before the last is best; the tests find out which.
TRAINING = small_runs.RECIPE["training"] | {"validation_share": 0.3, "lr": 0.05}
KEPT = {"fedmr": {"rounds": 6, "keep": "best"}}


def keeping(*stages: dict[str, Any], **training: Any) -> Recipe:
    return recipe(training=TRAINING | training, stages=list(stages))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def best_of(run: Path, *rounds: int) -> int:
    values = {line["round"]: line["validation_accuracy"] for line in lines(run) if line["round"] in rounds}
    return max(values, key=lambda round: (values[round], -round))


def tensors(model: Path) -> dict[str, torch.Tensor]:
    return load_tensors(model / "model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that keeps its best round, and one that goes on from there."""
    run = tmp_path_factory.mktemp("keep") / "run"
    follow(run, keeping(KEPT, {"evaluate": {}}, {"fedavg": {"rounds": 2}}, {"publish": {"what": "both"}}))
    return run


@pytest.fixture(scope="module")
def best(whole: Path) -> int:
    found = best_of(whole, *range(1, 7))
    assert found < 6, "the last round is the best: the test shows nothing"
    return found


def test_the_next_stage_goes_on_from_the_best_round_and_rounds_are_counted_on(whole: Path, best: int) -> None:
    assert [(line["round"], line["stage"]) for line in lines(whole)] == [(n, 1 if n < 7 else 3) for n in range(1, 9)]
    assert json.loads((whole / "evaluation.json").read_text())["round"] == best
    folder = whole / "checkpoints"
    federation = prepare(keeping(KEPT))
    kept = load_state(folder, Place(best, 0, "fedmr"), federation)
    method = FedAvg()
    start = begin_stage(federation, method, kept.state)
    [seventh] = run_rounds(federation, method, start, first_round=7, rounds=1)
    assert_same(dict(seventh.state.global_weights), tensors(folder / "3-fedavg-0007" / "global"))


def test_the_checkpoint_of_the_best_round_is_kept_until_the_run_ends(whole: Path, best: int) -> None:
    found = [(place.stage, place.round) for place in find_checkpoints(whole / "checkpoints")]
    assert found == [(0, best), (0, 6), (2, 7), (2, 8)]
    assert json.loads((whole / "checkpoints" / "1-fedmr-0006" / "state.json").read_text())["best_round"] == best
    assert "best_round" not in json.loads((whole / "checkpoints" / "3-fedavg-0008" / "state.json").read_text())


@pytest.mark.parametrize("stops", [[1, 1, 1], [4], [6], [7]])
def test_a_resumed_run_ends_with_the_same_bytes(whole: Path, tmp_path: Path, stops: list[int]) -> None:
    checked = keeping(KEPT, {"evaluate": {}}, {"fedavg": {"rounds": 2}}, {"publish": {"what": "both"}})
    for count in stops:
        with Run(checked, tmp_path / "run") as run:
            list(islice(run.execute(), count))
    follow(tmp_path / "run", checked)
    assert models(tmp_path / "run") == models(whole)
    assert (tmp_path / "run/evaluation.json").read_text() == (whole / "evaluation.json").read_text()


def test_what_is_published_after_it_are_the_models_of_its_best_round(tmp_path: Path, best: int) -> None:
    finished = run_recipe(
        small_runs.RECIPE | {"training": TRAINING, "stages": [KEPT, {"publish": {"what": "both"}}]}, tmp_path / "run"
    )
    assert finished.rounds == 6
    expected = lines(tmp_path / "run")[best - 1]
    assert finished.test_accuracy == expected["test_accuracy"]
    assert "round" not in finished.metrics
    assert finished.metrics["test_loss"] == expected["test_loss"]
    checkpoint = tmp_path / "run/checkpoints" / f"1-fedmr-{best:04d}"
    published = tmp_path / "run/global"
    assert_same(tensors(published), tensors(checkpoint / "global"))
    assert_same(tensors(published / "slot-01"), tensors(checkpoint / "slot-01"))
    card = (published / "README.md").read_text()
    assert f"the models of round {best}, the best one of its stage" in card
    assert f"In round {best} these were the clients" in card
    evaluation = json.loads((published / "evaluation.json").read_text())
    assert (evaluation["round"], evaluation["accuracy"]) == (best, pytest.approx(expected["test_accuracy"]))


def test_rounds_that_are_not_evaluated_do_not_count_but_the_last_one_does(tmp_path: Path) -> None:
    """Nor do those that are evaluated for another reason: what is published must not decide what is kept."""
    checked = keeping({"fedmr": {"rounds": 5, "keep": "best"}}, {"evaluate": {}}, evaluate_every=2)
    length = checked.stages[0].length  # type: ignore[union-attr]
    with Run(checked, tmp_path / "run") as run:
        history = [{"round": n, "validation_accuracy": value} for n, value in enumerate((0.9, 0.5, 0.8, 0.5, 0.7), 1)]
        assert length.best_round(run.federation, history) == 2
        assert length.best_round(run.federation, history, over=True) == 5
        assert length.best_round(run.federation, [{"round": 1}, {"round": 2}]) is None
        list(run.execute())
    found = best_of(tmp_path / "run", 2, 4, 5)
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["round"] == found


def test_without_checkpoints_of_every_round_the_best_one_has_one(whole: Path, best: int, tmp_path: Path) -> None:
    follow(tmp_path / "run", keeping(KEPT, {"publish": {}}, checkpoint_every=100))
    assert [place.round for place in find_checkpoints(tmp_path / "run/checkpoints")] == [best, 6]


def test_a_damaged_checkpoint_of_the_best_round_is_found_when_the_run_is_resumed(tmp_path: Path, best: int) -> None:
    checked = keeping(KEPT, {"publish": {}})
    follow(tmp_path / "run", checked)
    damaged = tmp_path / "run/checkpoints" / f"1-fedmr-{best:04d}"
    shutil.rmtree(damaged / "global")
    with pytest.raises(RunError, match=rf"1-fedmr-{best:04d}/global/\S+: damaged: it is missing; no other checkpoint"):
        Run(checked, tmp_path / "run")


def test_a_stage_that_is_extended_may_find_a_better_round(tmp_path: Path) -> None:
    long, run = keeping({"fedmr": {"rounds": 8, "keep": "best"}}, {"publish": {}}), tmp_path / "run"
    follow(tmp_path / "whole", long)
    follow(run, keeping({"fedmr": {"rounds": 3, "keep": "best"}}, {"publish": {}}))
    follow(run, long, extend=True)
    assert models(run) == models(tmp_path / "whole")
    assert_same(tensors(run / "global"), tensors(tmp_path / "whole" / "global"))
    with pytest.raises(RunError, match=r"keep: \"best\" → absent"):
        Run(keeping({"fedmr": {"rounds": 9}}), run, extend=True)


def test_a_fork_takes_the_best_round_along(tmp_path: Path, whole: Path, best: int) -> None:
    checked = keeping(KEPT, {"evaluate": {}}, {"fedavg": {"rounds": 2}}, {"publish": {"what": "both"}})
    fork_run(whole, 6, tmp_path / "fork", checked.to_yaml())
    assert follow(tmp_path / "fork", checked) == [7, 8]
    assert models(tmp_path / "fork") == models(whole)


def test_it_is_refused_where_test_data_would_decide(tmp_path: Path) -> None:
    checked = recipe(stages=[{"fedavg": {"rounds": 1}}, {"fedmr": {"rounds": 2, "keep": "best"}}])
    with pytest.raises(TrainingError, match=r"stages\[1\]\.fedmr\.keep is best, and no examples are held out") as found:
        Run(checked, tmp_path / "run")
    assert "validation_share" in str(found.value.hint)


def test_it_decides_bytes_only_where_it_is_asked_for() -> None:
    plain, last = keeping({"fedmr": {"rounds": 6}}), keeping({"fedmr": {"rounds": 6, "keep": "last"}})
    assert identity(plain) == identity(last) != identity(keeping(KEPT))
    assert "keep" not in last.stages[0].to_json()
