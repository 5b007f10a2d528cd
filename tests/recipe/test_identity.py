"""Which options decide the bytes of a run, and how a run is continued with another recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_runs
from small_runs import follow, models, recipe, stages

from fedmr_merge.errors import RunError
from fedmr_merge.recipe.identity import identity
from fedmr_merge.recipe.run import RoundDone, Run
from fedmr_merge.runs.record import read_run

TRAINING = small_runs.RECIPE["training"]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"training": TRAINING | {"threads": 3}},
        {"training": TRAINING | {"checkpoint_every": 2}},
        {"stages": [{"fedmr": {"rounds": 3}}, {"evaluate": {}}, {"publish": {"tags": ["x"]}}]},
    ],
)
def test_what_cannot_change_the_bytes_is_not_part_of_an_identity(changes: dict[str, Any]) -> None:
    assert identity(recipe(**changes)) == identity(recipe())


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"training": TRAINING | {"lr": 0.02}},
        {"training": TRAINING | {"engine": "vmap"}},
        {"data": {"name": "digits", "partition": {"kind": "iid", "clients": 61}}},
        {"stages": [{"fedmr": {"rounds": 4}}]},
        {"stages": [{"fedavg": {"rounds": 3}}]},
        {"stages": [{"fedmr": {"rounds": 3, "until": {"plateau": {"patience": 2}}}}]},
    ],
)
def test_what_decides_the_bytes_is(changes: dict[str, Any]) -> None:
    assert identity(recipe(**changes)) != identity(recipe())


def test_what_a_private_run_may_publish_decides_no_bytes() -> None:
    def private(**options: Any) -> str:
        privacy = {"clip": 1.0, "noise_multiplier": 1.0, **options}
        return identity(recipe(training=TRAINING | {"privacy": privacy}))

    assert private(publish_measured=True) == private()
    assert private(clip=2.0) != private()


def tabular(task: dict[str, Any] | None) -> Any:
    data = {"name": "diabetes", "partition": {"kind": "iid", "clients": 60}}
    changes = {} if task is None else {"task": {"name": "regression", **task}}
    return recipe(data=data, model={"name": "mlp", "hidden": [4]}, **changes)


def test_the_task_decides_the_bytes(tmp_path: Path) -> None:
    """A run is not resumed with another loss, and a sweep over losses shares no rounds."""
    own, huber, steeper = tabular(None), tabular({"objective": "huber"}), tabular({"objective": "huber", "delta": 2.0})
    assert identity(own) == identity(tabular({"objective": "squared"})), "spelled out or not"
    for round in (None, 1, 2):
        assert len({identity(each, round) for each in (own, huber, steeper)}) == 3
    follow(tmp_path / "run", huber)
    with pytest.raises(RunError, match=r"belongs to another recipe: task\.delta: 1\.0 → 2\.0$"):
        Run(steeper, tmp_path / "run")
    with pytest.raises(RunError, match=r"cannot be extended.*: task\.name: .* → absent, task\.objective"):
        Run(tabular(None), tmp_path / "run", extend=True)


def test_what_is_evaluated_may_change_where_no_stage_ends_by_it(tmp_path: Path) -> None:
    def evaluating(every: int, at: str, **stage: Any) -> Any:
        training = TRAINING | {"evaluate_every": every, "validation_at": at, "validation_share": 0.2}
        return recipe(stages=[{"fedavg": {"rounds": 2, **stage}}, {"fedmr": {"rounds": 1}}], training=training)

    seldom, often = evaluating(5, "server"), evaluating(1, "clients")
    with Run(seldom, tmp_path / "run") as run:
        next(run.execute())
    assert follow(tmp_path / "run", often) == [2, 3]
    assert follow(tmp_path / "whole", often) == [1, 2, 3]
    assert models(tmp_path / "run") == models(tmp_path / "whole")
    assert identity(seldom, 1) != identity(often, 1), "a run of a sweep that began as the other would lack metrics"

    until = {"until": {"plateau": {"patience": 2}}}
    follow(tmp_path / "ended", evaluating(5, "server", **until))
    assert follow(tmp_path / "ended", evaluating(5, "clients", **until)) == []
    for extend in (False, True):
        with pytest.raises(RunError, match=r": training\.evaluate_every: 5 → 1$"):
            Run(evaluating(1, "clients", **until), tmp_path / "ended", extend=extend)


def test_recipes_agree_up_to_the_round_in_which_they_part() -> None:
    one, other = recipe(**stages(2, 3)), recipe(**stages(4, 1))
    assert [identity(one, round) == identity(other, round) for round in (1, 2, 3, 4)] == [True, True, False, False]
    third = recipe(stages=[{"fedavg": {"rounds": 2}}, {"fedprox": {"rounds": 3}}])
    assert identity(one, 2) == identity(third, 2)
    assert identity(one, 3) != identity(third, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FedAvg for one round, SCAFFOLD for one: a method with memory."""
    folder = tmp_path_factory.mktemp("short") / "run"
    assert follow(folder, recipe(stages=[{"fedavg": {"rounds": 1}}, {"scaffold": {"rounds": 1}}])) == [1, 2]
    return folder


def longer(*more: dict[str, Any], rounds: int = 2, lr: float = 0.01) -> Any:
    training = TRAINING | {"lr": lr}
    return recipe(stages=[{"fedavg": {"rounds": 1}}, {"scaffold": {"rounds": rounds}}, *more], training=training)


def test_more_rounds_and_stages_continue_with_the_memory_of_the_method(run: Path, tmp_path: Path) -> None:
    folder, wanted = small_runs.copied(run, tmp_path / "run"), longer({"fedmr": {"rounds": 1}})
    with pytest.raises(RunError, match=r"stages\[1\]\.scaffold\.rounds: 1 → 2, stages\[2\]\.fedmr") as caught:
        Run(wanted, folder)
    assert "--extend" in str(caught.value.hint)
    assert follow(folder, wanted, extend=True) == [3, 4]
    assert follow(tmp_path / "whole", wanted) == [1, 2, 3, 4]
    assert models(folder) == models(tmp_path / "whole")
    assert follow(folder, wanted) == [], "from then on it is a run of the longer recipe"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (longer(lr=0.02), r"cannot be extended.*: training\.lr: 0\.01 → 0\.02$"),
        (recipe(stages=[{"fedavg": {"rounds": 3}}]), r"cannot be extended.*stages\[0\]\.fedavg\.rounds: 1 → 3"),
        (recipe(stages=[{"fedavg": {"rounds": 1}}, {"fedmr": {"rounds": 9}}]), r"cannot be extended.*stages\[1\]"),
    ],
)
def test_a_run_is_not_extended_where_its_rounds_would_have_been_others(run: Path, wanted: Any, message: str) -> None:
    before = (run / "recipe.yaml").read_text()
    with pytest.raises(RunError, match=message):
        Run(wanted, run, extend=True)
    assert (run / "recipe.yaml").read_text() == before


def test_a_stage_is_not_made_shorter_than_it_was(tmp_path: Path) -> None:
    follow(tmp_path / "run", recipe(**stages(2)))
    with pytest.raises(RunError, match=r"stages\[0\] has run for 2 rounds, the recipe ends it after 1"):
        Run(recipe(**stages(1)), tmp_path / "run", extend=True)


def test_options_that_decide_no_byte_may_change_at_any_time(run: Path, tmp_path: Path) -> None:
    folder = small_runs.copied(run, tmp_path / "run")
    changed = recipe(
        stages=[{"fedavg": {"rounds": 1}}, {"scaffold": {"rounds": 1}}, {"evaluate": {}}],
        training=TRAINING | {"threads": 2, "checkpoint_every": 5},
    )
    assert follow(folder, changed) == []
    assert json.loads((folder / "evaluation.json").read_text())["round"] == 2
    assert "checkpoint_every: 5" in (folder / "recipe.yaml").read_text()


def test_a_criterion_that_ended_a_stage_may_be_taken_away(tmp_path: Path) -> None:
    until = {"plateau": {"patience": 1, "min_delta": 1.0}}
    assert follow(tmp_path / "run", recipe(stages=[{"fedmr": {"rounds": 9, "until": until}}])) == [1, 2]
    assert read_run(tmp_path / "run").is_finished
    assert follow(tmp_path / "run", recipe(**{"stages": [{"fedmr": {"rounds": 3}}]}), extend=True) == [3]
    assert follow(tmp_path / "whole", recipe()) == [1, 2, 3]
    assert models(tmp_path / "run") == models(tmp_path / "whole")


def test_extend_begins_a_run_where_there_is_none(tmp_path: Path) -> None:
    with Run(recipe(**stages(1)), tmp_path / "run", extend=True) as started:
        assert [event.result.round for event in started.execute() if isinstance(event, RoundDone)] == [1]
    with pytest.raises(RunError, match="exclude each other"):
        Run(recipe(), tmp_path / "run", extend=True, fresh=True)
