"""What of a recipe decides the bytes of a run, and what does not.

The bytes of every model of a run are decided by the seed, the data and their partition, the task, the model and its
first weights, how clients train, and the stages that change the model. They are not decided by the recipe's name, by
how many threads compute, by how often a checkpoint is written, or by what is evaluated, logged and published. A run may
change the latter at any time. Two recipes that agree in the former up to a round have the same models after it, and can
share the work (`fork_run`) where they evaluate alike, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedmr_merge.errors import RecipeError, RunError, listed, shown
from fedmr_merge.recipe.own import Own
from fedmr_merge.recipe.schema import Recipe, parse_recipe
from fedmr_merge.recipe.stages import Evaluate, Publish, TrainingStage
from fedmr_merge.runs.logs import damaged, read_log_prefix
from fedmr_merge.runs.names import CHECKPOINTS, METRICS, RECIPE, find_checkpoints
from fedmr_merge.runs.record import read_run

#: Options of `training` that change how fast a run computes and how often it saves, but no model and no metric.
FREE_TRAINING_OPTIONS = ("threads", "checkpoint_every", "log")
_LENGTH = ("rounds", "until")
_SHOWN = 10  # differences
_VALUE_LENGTH = 60  # characters of a value, in a message


def identity(recipe: Recipe, upto_round: int | None = None) -> str:
    """Return a hash of what decides the models and the metrics of a run up to a round, or of the whole run.

    Two recipes with the same identity up to a round have the same models after it. The round must be one that no stage
    can end before, by `until`.
    """
    if upto_round is None:
        decided = deciding_options(recipe)
    else:
        position, rounds = _position(recipe, upto_round)
        decided = deciding_options(recipe, position, rounds)
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def _position(recipe: Recipe, upto_round: int) -> tuple[int, int]:
    """Return the stage in which a round is, and how many rounds of it are done after that round."""
    before = 0
    for position, stage in enumerate(recipe.stages):
        if isinstance(stage, TrainingStage):
            if upto_round <= before + stage.length.rounds:
                return position, upto_round - before
            before += stage.length.rounds
    raise ValueError(f"round {upto_round} of a recipe with {before} rounds")


def deciding_options(recipe: Recipe, stage: int | None = None, rounds: int = 0) -> dict[str, Any]:
    """Return the options that decide models and metrics: of a whole run, or up to `rounds` rounds within a stage.

    How long that stage lasts does not matter for its rounds. Stages that change no weights count by their names, as the
    logs number all stages. A `stage` of -1 leaves out all stages.
    """
    content = recipe.to_json()
    training = {key: value for key, value in content["training"].items() if key not in FREE_TRAINING_OPTIONS}
    if training["privacy"]:
        training["privacy"] = {k: v for k, v in training["privacy"].items() if k != "publish_measured"}
    stages = []
    for position, (made, spelled) in enumerate(zip(recipe.stages, content["stages"], strict=True)):
        if stage is not None and position > stage:
            break
        [(name, options)] = spelled.items()
        if isinstance(made, Evaluate | Publish):
            options = {}
        elif position == stage and isinstance(made, TrainingStage):
            options = {**{key: value for key, value in options.items() if key not in _LENGTH}, "rounds": rounds}
        stages.append({name: options})
    while stage is None and stages and isinstance(recipe.stages[len(stages) - 1], Evaluate | Publish):
        stages.pop()  # what comes after the last round decides nothing
    named = {key: value for key, value in content.items() if key in ("seed", "data", "model", "task")}
    return {**named, "training": training, "stages": stages}


def require_agreement(run: Path, recipe: Recipe, *, extend: bool) -> None:
    """Check that the run in a folder can be resumed with a recipe.

    Its recipe must agree in all that decides bytes. With `extend` it must do so only up to the newest checkpoint: the
    rest may differ, and stages may be longer.

    Raises RunError with the options that differ.
    """
    before = _recipe_of(run)
    whole = _differences(before, recipe)
    if not whole:
        return
    if not extend:
        raise RunError(
            f"{run}: belongs to another recipe: {_listed(whole)}",
            hint="choose another folder with --out, --extend to continue the run where both recipes agree so far, "
            "or --fresh to replace it",
            path=run,
        )
    stage, rounds = _progress(run)
    now = recipe.stages[stage] if 0 <= stage < len(recipe.stages) else None
    if isinstance(now, TrainingStage) and now.length.rounds < rounds:
        raise RunError(
            f"{run}: stages[{stage}] has run for {rounds} rounds, the recipe ends it after {now.length.rounds}",
            hint="let the stage last at least as long, or choose another folder with --out",
            path=run,
        )
    if differing := _differences(before, recipe, stage, rounds):
        raise RunError(
            f"{run}: cannot be extended, as its rounds so far were run with other options: {_listed(differing)}",
            hint="choose another folder with --out, or --fresh to replace the run",
            path=run,
        )


def require_base(run: Path, before: dict[str, Any] | None, now: dict[str, Any] | None) -> None:
    """Check that a run is resumed with the trained model that it began with, by the SHA-256 of its files.

    Raises RunError with the files that differ.
    """
    if before is None or now is None or before["sha256"] == now["sha256"]:
        return
    files = {*before["sha256"], *now["sha256"]}
    differing = sorted(name for name in files if before["sha256"].get(name) != now["sha256"].get(name))
    raise RunError(
        f"{run}: began with another model {shown(now['name'])}: {listed(differing, between=', ')} "
        f"{'differs' if len(differing) == 1 else 'differ'}",
        hint="resume with the model that it began with, choose another folder with --out, or start anew with --fresh",
        path=run,
    )


def _recipe_of(run: Path) -> Recipe:
    record = read_run(run)
    try:
        return parse_recipe(record.recipe, str(run / RECIPE), Own(imported=False))
    except RecipeError as error:
        raise damaged(run / RECIPE, "; ".join(map(str, error.faults[:3]))) from error


def _progress(run: Path) -> tuple[int, int]:
    """Return the stage of the newest checkpoint and the rounds of it that are done; (-1, 0) where there is none."""
    places = find_checkpoints(run / CHECKPOINTS)
    if not places:
        return -1, 0
    place = places[-1]
    lines = read_log_prefix(run, METRICS)[0][: place.round]
    return place.stage, sum(line["stage"] == place.stage + 1 for line in lines)


def _differences(before: Recipe, now: Recipe, stage: int | None = None, rounds: int = 0) -> list[str]:
    """Return the options that differ and decide the bytes of the models, in all, or up to a round within a stage."""
    decided = [deciding_options(recipe, stage, rounds) for recipe in (before, now)]
    for options in decided:
        del options["training"]["validation_at"]
        if not any(_reads_metrics(recipe, stage) for recipe in (before, now)):
            del options["training"]["evaluate_every"]
    flat = [dict(_flat(options)) for options in decided]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    return [
        f"{key}: {flat[0].get(key, 'absent')} → {flat[1].get(key, 'absent')}"
        for key in keys
        if flat[0].get(key) != flat[1].get(key)
    ]


def _reads_metrics(recipe: Recipe, upto: int | None) -> bool:
    """Return whether a stage may end by its metrics, or keeps its best round: of all stages, or of those up to one.

    That one may end later than it did, by metrics that are still to come.
    """
    for position, stage in enumerate(recipe.stages[: None if upto is None else upto + 1]):
        if isinstance(stage, TrainingStage):
            ends_by_them = stage.length.until is not None and position != upto
            if ends_by_them or stage.length.keep == "best":
                return True
    return False


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{number}]")
    else:
        text = json.dumps(value, ensure_ascii=False)
        yield path, text if len(text) <= _VALUE_LENGTH else f"{text[:_VALUE_LENGTH]}…"


def _listed(differences: list[str]) -> str:
    more = f", and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    return ", ".join(differences[:_SHOWN]) + more
