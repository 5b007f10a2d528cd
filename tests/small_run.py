"""A recipe that trains for a second, and how to follow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedmr_merge.cli import main
from fedmr_merge.recipe.run import Run, StageDone
from fedmr_merge.recipe.schema import parse_recipe

RECIPE: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "data": {"name": "digits", "partition": {"kind": "dirichlet", "clients": 8}},
    "model": {"name": "cnn"},
    "training": {"clients_per_round": 3, "local_epochs": 1},
    "stages": [
        {"fedavg": {"rounds": 1}},
        {"fedmr": {"rounds": 2}},
        {"publish": {"what": "both", "license": "apache-2.0", "tags": ["handwriting"]}},
        {"publish": {"what": "cohort"}},
    ],
}


def follow(folder: Path, **changes: Any) -> list[str]:
    """Run a recipe to its end; returns what its stages said."""
    with Run(parse_recipe(RECIPE | changes, "small.yaml"), folder) as run:
        return [event.message for event in run.execute() if isinstance(event, StageDone)]


def command(*arguments: object) -> int:
    """Type a command, in this process; returns its exit code."""
    try:
        main(list(map(str, arguments)))
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def write_run(folder: Path, *accuracies: float, **changes: Any) -> Path:
    """Write what a run records."""
    folder.mkdir(parents=True)
    recipe = parse_recipe(RECIPE | {"stages": [{"fedmr": {"rounds": 4}}, {"evaluate": {}}]} | changes, "r.yaml")
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    head = {"stage": 1, "method": "fedmr", "seconds": 0.5}
    lines = [head | {"round": i, "test_accuracy": found} for i, found in enumerate(accuracies, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
