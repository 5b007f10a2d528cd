"""Runs of a fraction of a second: the smallest model, a few examples of each client."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fedmr_merge.recipe.run import RoundDone, Run
from fedmr_merge.recipe.schema import Recipe, parse_recipe

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "seed": 1,
    "data": {"name": "digits", "partition": {"kind": "iid", "clients": 60}},
    "model": {"name": "cnn"},
    "training": {"clients_per_round": 2, "local_epochs": 1},
    "stages": [{"fedmr": {"rounds": 3}}],
}


def recipe(**changes: Any) -> Recipe:
    return parse_recipe(RECIPE | changes, "tiny.yaml")


def stages(*rounds: int) -> dict[str, Any]:
    """FedAvg, then FedMR, for so many rounds."""
    return {"stages": [{name: {"rounds": count}} for name, count in zip(("fedavg", "fedmr"), rounds, strict=False)]}


def follow(folder: Path, checked: Recipe, **options: Any) -> list[int]:
    """Run or resume to the end; returns the rounds that were run."""
    with Run(checked, folder, **options) as run:
        return [event.result.round for event in run.execute() if isinstance(event, RoundDone)]


def models(folder: Path) -> dict[str, bytes]:
    """The bytes of the models of a run's newest checkpoint."""
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    return {str(path.relative_to(newest)): path.read_bytes() for path in sorted(newest.rglob("*.safetensors"))}


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
