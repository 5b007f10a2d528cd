"""What the numbers of a run depend on besides its recipe: versions, the device, and the code of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fedmr_merge.federated.plugin import Plugin
from fedmr_merge.federated.training.local_training import Engine
from fedmr_merge.recipe.schema import Recipe
from fedmr_merge.recipe.stages import TrainingStage
from fedmr_merge.runs.folder import describe_environment


def run_environment(recipe: Recipe, device: torch.device, engine: Engine | None) -> dict[str, Any]:
    """Return what a run records of its surroundings, as JSON; `engine` is one that a recipe does not name."""
    methods = [stage.method for stage in recipe.stages if isinstance(stage, TrainingStage)]
    parts: list[Plugin] = [recipe.data, recipe.partition, recipe.model, recipe.task, *methods]
    packages = {name for part in parts for name in part.packages}.union(engine.packages if engine else ())
    versions = {f"code of {part.name}": part.code_version for part in parts}
    own_code = {name: version for name, version in versions.items() if version is not None}
    return {**describe_environment(device, packages), **own_code}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for everything that is not as it was: the bytes of a run may then differ from those of one go."""
    flat = [{**side, **side["packages"]} for side in (before, now)]
    return [
        f"{key}: {flat[0].get(key, 'absent')} → {flat[1][key]}"
        for key in flat[1]
        if key != "packages" and flat[0].get(key) != flat[1][key]
    ]
