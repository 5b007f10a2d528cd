"""Do the runs of a sweep: several at a time, on one machine or on many, to be resumed after any interruption."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmr_merge.checkpoint.writer import write_json
from fedmr_merge.errors import RunError
from fedmr_merge.recipe.claims import Claims
from fedmr_merge.recipe.sweep_file import SweepFile, SweepRun
from fedmr_merge.recipe.sweep_workers import Ended, Job, Progress, Workers
from fedmr_merge.runs.sweep_folder import (
    CLAIMS,
    OUTCOMES,
    RUNS,
    SWEEP_FILE,
    DescribedRun,
    PublishedNumber,
    SweepDescription,
    read_sweep_folder,
)

_POLL_SECONDS = 5.0  #: how often to look whether another process gave a run back


@dataclass(frozen=True)
class Started:
    """A run begins, or is resumed."""

    name: str


@dataclass(frozen=True)
class Skipped:
    """A run is not done by this process: it is done already, or another process works on it."""

    name: str
    reason: str


Event = Started | Progress | Ended | Skipped


class Sweep:
    """The runs of a sweep in its folder.

    Args:
        definition: The sweep file that the runs are of.
        runs: The runs that it stands for, or those of them that were asked for.
        out: The folder of the sweep; it may hold other runs of it, which stay.
    """

    def __init__(self, definition: SweepFile, runs: Sequence[SweepRun], out: Path) -> None:
        self.definition, self.runs, self.out = definition, tuple(runs), out

    def prepare(self) -> None:
        """Check every run's recipe, make the folder, and write down what its runs are.

        Raises:
            RecipeError: If the recipe of a run has faults.
            RunError: If it is the folder of another sweep, or of something else.
        """
        from fedmr_merge.recipe.schema import parse_recipe  # imports torch

        for run in self.runs:
            parse_recipe(run.recipe, run.name)
        exists = (self.out / SWEEP_FILE).exists()
        known = read_sweep_folder(self.out).runs if exists and self._is_ours() else {}
        if not exists and self.out.is_dir() and any(self.out.iterdir()):
            raise RunError(
                f"{self.out}: is not empty and does not hold a sweep", hint="choose another folder with --out"
            )
        for folder in (RUNS, OUTCOMES):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        description = SweepDescription(
            name=self.definition.name,
            axes={axis: list(choices) for axis, choices in self.definition.axes.items()},
            published=_published(self.definition),
            runs={**known, **{run.name: DescribedRun(dict(run.choices), run.seed) for run in self.runs}},
        )
        write_json(self.out / SWEEP_FILE, description.to_json())

    def _is_ours(self) -> bool:
        """Whether the folder is of this sweep. Raises RunError when it is another's."""
        before = read_sweep_folder(self.out)
        if before.name != self.definition.name:
            raise RunError(
                f"{self.out}: holds the sweep {before.name!r}, not {self.definition.name!r}",
                hint="choose another folder with --out",
            )
        return True

    def folder(self, run: SweepRun) -> Path:
        """Return the folder of a run."""
        return self.out / RUNS / run.name

    def execute(self, jobs: int, shard: tuple[int, int] = (1, 1)) -> Iterator[Event]:
        """Do the runs that are not done, yielding what happens.

        Args:
            jobs: How many runs to do at a time.
            shard: (i, n) does the i-th of n shares of the runs, counted from 1.

        A run that fails is recorded, and the others are done all the same. What another process works on is waited for
        only where it gives it back; when everything else is done, this returns.
        """
        waiting: list[SweepRun] = []
        for run in self.runs[shard[0] - 1 :: shard[1]]:
            if self._is_done(run):
                yield Skipped(run.name, "done already")
            else:
                waiting.append(run)
        started: dict[str, tuple[SweepRun, float]] = {}
        with Claims(self.out / CLAIMS) as claims, Workers(jobs) as workers:
            while waiting or workers.busy:
                while workers.free and (claimed := self._claim(waiting, claims)) is not None:
                    waiting.remove(claimed)
                    if self._is_done(claimed):  # by another process, since this one looked
                        claims.release(claimed.name)
                        yield Skipped(claimed.name, "done by another process")
                        continue
                    started[claimed.name] = (claimed, time.time())
                    workers.start(Job(claimed.name, self.folder(claimed), claimed.recipe))
                    yield Started(claimed.name)
                if not workers.busy:  # others have claimed all that is left
                    break
                for event in workers.events(_POLL_SECONDS):
                    if isinstance(event, Ended):
                        self._record(*started.pop(event.name), event.fault)
                        claims.release(event.name)
                    yield event
        for run in waiting:
            yield Skipped(run.name, "another process works on it")

    def _claim(self, waiting: Sequence[SweepRun], claims: Claims) -> SweepRun | None:
        return next((run for run in waiting if claims.take(run.name)), None)

    def _outcome(self, run: SweepRun) -> Path:
        return self.out / OUTCOMES / f"{run.name}.json"

    def _is_done(self, run: SweepRun) -> bool:
        try:
            content = json.loads(self._outcome(run).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return (
            isinstance(content, dict) and content.get("done") is True and content.get("recipe") == _digest(run.recipe)
        )

    def _record(self, run: SweepRun, started: float, fault: str | None) -> None:
        write_json(
            self._outcome(run),
            {
                "done": fault is None,
                "fault": fault,
                "recipe": _digest(run.recipe),
                "seconds": round(time.time() - started, 1),
            },
        )


def _digest(recipe: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _published(definition: SweepFile) -> list[PublishedNumber]:
    """Return the published numbers that the sweep names: choices by axis, mean and deviation in percent."""
    reference, path = definition.reference, definition.reference_file
    if reference is None or path is None:
        return []
    names = {theirs: ours for ours, theirs in reference.choices.items()}
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return [
            PublishedNumber(
                {axis: names.get(row[axis], row[axis]) for axis in definition.axes if axis in row},
                float(row["accuracy_mean"]),
                float(row["accuracy_std"]),
            )
            for row in rows
            if all(row[column] == value for column, value in reference.where.items())
        ]
    except (OSError, UnicodeError, LookupError, TypeError, ValueError, csv.Error) as error:
        raise RunError(
            f"{path}: cannot be read as published numbers: {getattr(error, 'strerror', None) or repr(error)}",
            hint="it must be a CSV file with the columns accuracy_mean and accuracy_std, and one for each axis",
        ) from error
