"""Learning rates of the stages of a recipe: whence a schedule counts, and that a run is resumed within one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_runs
from small_runs import follow, models, recipe

from fedmr_merge.errors import TrainingError
from fedmr_merge.recipe.identity import identity
from fedmr_merge.recipe.run import Run

TRAINING = small_runs.RECIPE["training"] | {"lr_schedule": {"kind": "step", "every": 1, "factor": 0.5}}


def scheduled(*rounds: int) -> Any:
    """A stage with the schedule of the run, one with another rate, and one with a schedule of its own."""
    own = {"lr": 0.1, "lr_schedule": {"kind": "cosine", "rounds": 2, "min_lr": 0.02}}
    stages = [{"fedavg": {"rounds": 1}}, {"fedmr": {"rounds": 1, "lr": 0.04}}, {"fedmr": {"rounds": rounds[0], **own}}]
    return recipe(training=TRAINING, stages=stages)


def test_a_schedule_counts_from_the_first_round_of_what_it_is_written_in(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert follow(whole, scheduled(2)) == [1, 2, 3, 4]
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == pytest.approx([0.01, 0.02, 0.1, 0.06])
    assert follow(run, scheduled(1)) == [1, 2, 3]
    assert follow(run, scheduled(2), extend=True) == [4]
    assert models(run) == models(whole)


def test_rates_decide_bytes() -> None:
    plain = recipe(stages=[{"fedmr": {"rounds": 3, "lr": 0.02}}])
    assert len({identity(each, 1) for each in (plain, recipe(), recipe(training=TRAINING))}) == 3
    assert "lr" not in recipe().stages[0].to_json()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_schedule": {"kind": "cosine", "rounds": 2}}, "has fallen to 0 by round 3"),
        ({"lr_schedule": {"kind": "step"}}, r"stages\[0\]\.fedmr\.lr_schedule\.every is missing"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused_before_round_1(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        Run(recipe(stages=[{"fedmr": {"rounds": 3, **options}}]), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.y*ml"))
