"""The work of a sweep: rounds that several runs have in common are run once, and each run begins with them.

Two runs have their first rounds in common when everything that decides the bytes of these rounds is the same
(`identity`), as with FedAvg for 500 rounds, and FedMR after 100 rounds of FedAvg. These rounds are a run of their own,
in `beginnings/`, from whose last checkpoint the others are forked. Rounds of a stage that may end early, by `until`,
and those after it are not shared: their number is not known beforehand.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from fedmr_merge.recipe.identity import identity
from fedmr_merge.recipe.own import Own
from fedmr_merge.recipe.schema import Recipe, parse_recipe
from fedmr_merge.recipe.stages import TrainingStage
from fedmr_merge.recipe.sweep_file import SweepRun
from fedmr_merge.runs.sweep_folder import BEGINNINGS, RUNS


@dataclass(frozen=True)
class Beginning:
    """The run that another one is forked from, and after which of its rounds."""

    task: str
    round: int


@dataclass(frozen=True)
class Task:
    """A run to do: one of the sweep's, or rounds that several of them begin with."""

    name: str  #: unique in the sweep
    folder: Path  #: within the sweep's folder
    raw: Mapping[str, Any]  #: the recipe, unchecked
    recipe: Recipe = field(compare=False)
    beginning: Beginning | None = None
    code_folders: tuple[Path, ...] = ()  #: where modules are looked for that the recipe names


def plan_tasks(runs: Sequence[SweepRun]) -> list[Task]:
    """Return the tasks of some runs, each after the one that it begins with.

    Raises RecipeError when the recipe of a run has faults.
    """
    recipes = {run.name: parse_recipe(run.recipe, run.name, Own(run.code_folders)) for run in runs}
    common = _common_rounds(recipes)
    tasks: dict[str, Task] = {}
    for run in runs:
        recipe, beginning = recipes[run.name], None
        for round in sorted(common[run.name]):
            name = f"beginning-{identity(recipe, round)[:16]}"
            if name not in tasks:
                raw = _first_rounds(run.recipe, recipe, round) | {"name": name}
                parsed, folder = parse_recipe(raw, name, Own(run.code_folders)), Path(BEGINNINGS) / name
                tasks[name] = Task(name, folder, raw, parsed, beginning, run.code_folders)
            beginning = Beginning(name, round)
        tasks[run.name] = Task(run.name, Path(RUNS) / run.name, run.recipe, recipe, beginning, run.code_folders)
    return list(tasks.values())


def _common_rounds(recipes: Mapping[str, Recipe]) -> dict[str, set[int]]:
    """Return, for every run, after which rounds the rounds that it has in common with another run end."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name, recipe in recipes.items():
        if _certain_rounds(recipe):
            alike[identity(recipe, 1)].append(name)
    found: dict[str, set[int]] = {name: set() for name in recipes}
    for names in alike.values():
        for one, other in combinations(names, 2):
            round = _last_common(recipes[one], recipes[other])
            found[one].add(round)
            found[other].add(round)
    return found


def _last_common(one: Recipe, other: Recipe) -> int:
    """Return the last round up to which two recipes agree, which they do in the first."""
    low, high = 1, min(_certain_rounds(one), _certain_rounds(other))
    while low < high:
        middle = (low + high + 1) // 2
        if identity(one, middle) == identity(other, middle):
            low = middle
        else:
            high = middle - 1
    return low


def _certain_rounds(recipe: Recipe) -> int:
    """Return the number of rounds before the first stage that may end early."""
    rounds = 0
    for stage in recipe.stages:
        if isinstance(stage, TrainingStage):
            if stage.length.until is not None:
                break
            rounds += stage.length.rounds
    return rounds


def _first_rounds(raw: Mapping[str, Any], recipe: Recipe, rounds: int) -> dict[str, Any]:
    """Return a recipe of the first rounds of another one."""
    stages = []
    for spelled, stage in zip(copy.deepcopy(raw["stages"]), recipe.stages, strict=True):
        if isinstance(stage, TrainingStage):
            taken = min(rounds, stage.length.rounds)
            [options] = spelled.values()
            options["rounds"] = taken
            rounds -= taken
        stages.append(spelled)
        if not rounds:
            break
    return {**copy.deepcopy(dict(raw)), "stages": stages}
