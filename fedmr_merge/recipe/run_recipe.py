"""Follow a recipe to its end, in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fedmr_merge.errors import RecipeError, RecipeFault
from fedmr_merge.federated.data.datasets._own import given_data
from fedmr_merge.federated.models._own import given_model
from fedmr_merge.plain_values import strings
from fedmr_merge.recipe.own import Own
from fedmr_merge.recipe.ready_made import locate_recipe
from fedmr_merge.recipe.recording import last_measured
from fedmr_merge.recipe.run import BestKept, Event, RoundDone, Run
from fedmr_merge.recipe.schema import Recipe, parse_recipe, read_recipe
from fedmr_merge.recipe.text import apply_setting


@dataclass(frozen=True)
class FinishedRun:
    """A run that followed its recipe to the end."""

    folder: Path  #: the run folder
    rounds: int  #: that were done in all; fewer than the recipe's where a criterion ended a stage
    test_accuracy: float | None
    """Of the global model that the run ends with, 0 to 1; None where the task has none."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """All that was recorded of the last round that was evaluated, or of the best one where the last stage keeps it."""

    @property
    def model(self) -> Path | None:
        """The folder of the global model, which `load_model` reads; None where no stage published it."""
        folder = self.folder / "global"
        return folder if folder.is_dir() else None


def run_recipe(
    recipe: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    settings: str | Sequence[str] = (),
    model: nn.Module | Callable[..., nn.Module] | None = None,
    data: Any = None,
    fresh: bool = False,
    on_event: Callable[[Event], object] = lambda _: None,
) -> FinishedRun:
    """Train, recombine, evaluate and publish as a recipe says; a run that was interrupted is resumed.

    Args:
        recipe: a recipe file, a run folder (which is resumed by its own recipe), the name of a recipe that comes with
            the package, such as `digits`, or the content of a recipe as a mapping, in which there may be numbers of
            NumPy, tuples and paths.
        out: the run folder; `runs/NAME` where it is None, or the run folder that `recipe` names.
        settings: changes of the recipe, one or a list, as `--set` of the command line, e.g. `training.lr=0.05` or
            `seed=1`.
        model: a model of your own, in place of the recipe's `model` (of which only `init` counts then): any
            `torch.nn.Module`, whose weights are the first ones; or a class or function that returns one, which is
            called with those of `num_classes`, `num_outputs` and `input_shape` that it has as parameters, with the seed
            of the run. The run folder records its name; a run is resumed by giving it again.
        data: data of your own, in place of the recipe's `data` (of which only `partition` counts then): a pair (train,
            test) as `as_data` takes them, what `as_data` returns, or a data set of this package. A run is resumed by
            giving the same data again, which is checked by a hash of them.
        fresh: remove a run that is there already, and start again.
        on_event: called after every round with a RoundDone (its `result` has the `metrics`: accuracies and shares from
            0 to 1, seconds, bytes), and after every other stage with a StageDone; `isinstance` tells them apart.

    Returns:
        A FinishedRun: the run folder, the number of rounds, what was measured last, and where the model is. It is the
            same for a run that was finished already.

    Raises:
        RecipeError: the recipe has faults; all of them are reported at once.
        RunError: the run folder is in use, belongs to another recipe, or is damaged.
        DataError: the data set cannot be used, or cannot be fetched (AbsentDataError).
        TrainingError: training cannot start or continue.
        PushError: the run is complete, but not all of it could be pushed to the Hub.

    Examples:
        >>> from fedmr_merge import run_recipe
        >>> short = ["training.clients_per_round=2", "stages=[{fedmr: {rounds: 2}}, {publish: {}}]"]
        >>> finished = run_recipe("digits", "short", settings=short)
        >>> finished.rounds, finished.model.as_posix()
        (2, 'short/global')
    """
    given = None if data is None else given_data(data)
    own = Own((Path.cwd(),), model=None if model is None else given_model(model), data=given)
    checked, folder = _read(recipe, strings(settings), own)
    folder = Path(out) if out is not None else folder
    with Run(checked, folder, fresh=fresh) as run:
        rounds, metrics = _followed(run, on_event)
    return FinishedRun(folder, rounds, metrics.get("test_accuracy"), metrics)


def _followed(run: Run, on_event: Callable[[Event], object]) -> tuple[int, dict[str, float]]:
    """Follow a run to its end, and return the number of its rounds and what was measured last."""
    rounds = run.resumed_from.round if run.resumed_from else 0
    metrics = dict[str, float]()
    for event in run.execute():
        if isinstance(event, RoundDone):
            rounds = event.result.round
            metrics = dict(event.result.metrics) if event.result.evaluated else metrics
        elif isinstance(event, BestKept):
            metrics = dict(event.metrics)
        on_event(event)
    return rounds, metrics or last_measured(run.folder)  # no round was left to do


def _read(recipe: str | Path | Mapping[str, Any], settings: Sequence[str], own: Own) -> tuple[Recipe, Path]:
    if isinstance(recipe, Mapping):
        try:
            raw = _as_in_yaml(recipe)
        except RecursionError as error:
            raise RecipeError("the recipe", [RecipeFault("", "is nested too deeply, or holds itself")]) from error
        for setting in settings:
            apply_setting(raw, setting)
        checked = parse_recipe(raw, "the recipe", own)
        return checked, Path("runs") / checked.name
    located = locate_recipe(recipe)
    checked = read_recipe(located.path, settings, replace(own, folders=located.code_folders))
    return checked, located.run_folder or Path("runs") / checked.name


def _as_in_yaml(value: Any) -> Any:
    """Return a copy of a recipe that Python code made, with the plain values that reading YAML would give."""
    if isinstance(value, Mapping):
        return {key: _as_in_yaml(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_in_yaml(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return os.fspath(value) if isinstance(value, os.PathLike) else value
