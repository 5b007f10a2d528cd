"""`run_recipe` as Python code calls it: with numbers of NumPy, paths and single strings, and more than once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs

from fedmr_merge import RecipeError, RoundDone, StageDone, run_recipe


def test_values_of_python_are_those_of_yaml_and_a_finished_run_returns_what_it_returned(tmp_path: Path) -> None:
    recipe = small_runs.RECIPE | {
        "seed": np.int64(2),
        "training": {"clients_per_round": np.int32(2), "local_epochs": 1},
        "stages": ({"fedmr": {"rounds": np.int64(2)}}, {"evaluate": {}}),
    }
    events: list[Any] = []
    done = run_recipe(recipe, tmp_path / "run", settings="training.evaluate_every=2", on_event=events.append)
    assert [type(event) for event in events] == [RoundDone, RoundDone, StageDone]
    assert done.metrics == events[1].result.metrics
    assert done.test_accuracy is not None
    assert "seed: 2\n" in (tmp_path / "run/recipe.yaml").read_text()
    assert run_recipe(tmp_path / "run") == done


def test_a_run_starts_from_what_another_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = small_runs.RECIPE | {"stages": [{"fedavg": {"rounds": 1}}, {"publish": {}}]}
    first = run_recipe(recipe, tmp_path / "first").model
    assert first is not None
    init = (Path("~") / first.relative_to(tmp_path),)
    next_one = recipe | {"model": {"name": "cnn", "init": init}, "stages": [{"fedavg": {"rounds": 1}}]}
    run_recipe(next_one, tmp_path / "next")
    assert "init:\n  - ~/first/global\n" in (tmp_path / "next/recipe.yaml").read_text()


def test_a_recipe_that_holds_itself_is_refused(tmp_path: Path) -> None:
    recipe: dict[str, Any] = dict(small_runs.RECIPE)
    recipe["model"] = recipe
    with pytest.raises(RecipeError, match="holds itself"):
        run_recipe(recipe, tmp_path / "run")
