"""Read the folder of a run without taking part in it: no lock, no torch, nothing is written.

What a `publish` stage wrote is read in the same way: it holds copies of the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedmr_merge.errors import RunError
from fedmr_merge.federated.metrics import ACCURACY, Metric
from fedmr_merge.runs.logs import damaged, read_log, read_object, read_state
from fedmr_merge.runs.names import (
    CHECKPOINTS,
    ENVIRONMENT,
    EVALUATION,
    LINEAGE,
    METRICS,
    PARTITION,
    RECIPE,
    TASK,
    Place,
    find_checkpoints,
)
from fedmr_merge.runs.schema import RecipeFile, check_content
from fedmr_merge.yaml_reader import YamlError, read_yaml


@dataclass(frozen=True)
class RunRecord:
    """The files of a run, each read and checked when it is first asked for. Every property raises RunError."""

    path: Path
    recipe_text: str
    recipe: dict[str, Any]  #: with all options, as `recipe.yaml` has it

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """One mapping for each round that is recorded, from round 1: `round`, `stage`, `method`, `test_accuracy`, …"""
        return read_log(self.path, METRICS)

    @cached_property
    def lineage(self) -> list[dict[str, Any]]:
        """One mapping for each round: `clients` and `plan`. Empty where it is not published."""
        return read_log(self.path, LINEAGE)

    @cached_property
    def partition(self) -> dict[str, Any] | None:
        """`class_names` and `class_counts` [clients][classes]; `clients` in a run folder. None where not published."""
        return read_object(self.path, PARTITION)

    @cached_property
    def task(self) -> dict[str, Any] | None:
        """Name, pipeline tag and metrics of the task. None where a version that had no other one classified images."""
        return read_object(self.path, TASK)

    @cached_property
    def metrics_of_task(self) -> tuple[Metric, ...]:
        """The metrics of the task; the first is the one that decides."""
        if self.task is None:
            return (ACCURACY, Metric("loss", higher_is_better=False))
        keys = ("name", "higher_is_better", "is_share")
        return tuple(Metric(**{key: entry[key] for key in keys if key in entry}) for entry in self.task["metrics"])

    @property
    def metric(self) -> Metric:
        """The metric that decides which of two models is better."""
        return self.metrics_of_task[0]

    @property
    def deciding_part(self) -> str:
        """The examples by which the best round is known: `validation` where a part was held out for it, else `test`."""
        key = f"validation_{self.metric.name}"
        return "validation" if any(key in line for line in self.metrics) else "test"

    @cached_property
    def best_line(self) -> dict[str, Any]:
        """The line of the round whose global model was best, the first of several, by the part that decides."""
        key = f"{self.deciding_part}_{self.metric.name}"
        evaluated = [line for line in self.metrics if line.get(key) is not None]
        best = self.metric.best(line[key] for line in evaluated)
        return next(line for line in evaluated if line[key] == best)

    @cached_property
    def environment(self) -> dict[str, Any] | None:
        """Versions, device and threads."""
        return read_object(self.path, ENVIRONMENT)

    @cached_property
    def evaluation(self) -> dict[str, Any] | None:
        """What the last `evaluate` or `publish` stage measured."""
        return read_object(self.path, EVALUATION)

    @property
    def is_finished(self) -> bool:
        """Whether the last round of its last training stage is recorded, which `until` may have ended early."""
        lengths = [
            (number, options)
            for number, stage in enumerate(self.recipe["stages"], start=1)
            for options in stage.values()
            if "rounds" in options
        ]
        if not lengths:
            return True
        number, options = lengths[-1]
        done = sum(line["stage"] == number for line in self.metrics)
        if done and done < options["rounds"] and options.get("until"):
            places = self.checkpoints  # what is published has none
            return not places or (places[-1].stage + 1 == number and self._is_stage_over(places[-1]))
        return bool(done >= options["rounds"])

    def _is_stage_over(self, place: Place) -> bool:
        try:
            return bool(read_state(self.path / CHECKPOINTS / place.folder)["stage_over"])
        except RunError:  # damaged: the run goes back to an earlier one
            return False

    @property
    def checkpoints(self) -> list[Place]:
        """The places of the checkpoints, oldest first; `path / "checkpoints" / place.folder` holds the models."""
        return find_checkpoints(self.path / CHECKPOINTS)


def who_trained(line: Mapping[str, Any]) -> list[int | None]:
    """Return which client trained the model of each slot in the round of a line of the lineage; None where what it sent
    was not used.
    """
    failed = {*line.get("absent", ()), *map(int, line.get("diverged", ()))}
    return [None if client in failed else client for client in line["clients"]]


def holds_run(path: Path) -> bool:
    """Return whether a folder is that of a run with a round, or what a `publish` stage wrote."""
    return (path / RECIPE).is_file() and (path / METRICS).is_file()


def read_run(path: Path) -> RunRecord:
    """Open the folder of a run, or what its `publish` stage wrote.

    Raises RunError when the folder holds no recipe, or one that is damaged.
    """
    file = path / RECIPE
    try:
        text = file.read_text(encoding="utf-8")
        recipe = read_yaml(text)
    except OSError as error:
        raise RunError(
            f"{path}: is not a run folder: {RECIPE}: {error.strerror}",
            hint="name a run folder, such as runs/NAME, or what a `publish` stage wrote",
            path=path,
        ) from error
    except YamlError as error:
        raise damaged(file, f"not YAML: {f'line {error.line}: ' if error.line else ''}{error}") from error
    except UnicodeError as error:
        raise damaged(file, "not UTF-8") from error
    fault = check_content(RecipeFile, recipe)
    if fault is not None:
        raise damaged(file, fault)
    return RunRecord(path, text, recipe)
