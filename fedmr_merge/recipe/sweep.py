"""Do the runs of a sweep: several at a time, on one machine or on many, to be resumed after any interruption."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmr_merge.checkpoint.writer import write_json
from fedmr_merge.errors import RunError
from fedmr_merge.recipe.claims import Claims
from fedmr_merge.recipe.sweep_file import SweepFile, SweepRun
from fedmr_merge.recipe.sweep_workers import Ended, Job, Progress, Warned, Workers
from fedmr_merge.runs.sweep_folder import (
    BEGINNINGS,
    CLAIMS,
    OUTCOMES,
    RUNS,
    SWEEP_FILE,
    DescribedRun,
    PublishedNumber,
    SweepDescription,
    read_sweep_folder,
)

if TYPE_CHECKING:
    from fedmr_merge.recipe.sweep_plan import Task

_POLL_SECONDS = 5.0  #: how often to look whether another process gave a run back
_WAIT_SECONDS = 0.1  #: how often to look whether another process has described its runs


@dataclass(frozen=True)
class Started:
    """A run begins, or is resumed."""

    name: str


@dataclass(frozen=True)
class Skipped:
    """A run is not done by this process: it is done already, or another process works on it."""

    name: str
    reason: str


Event = Started | Progress | Warned | Ended | Skipped


class Sweep:
    """The runs of a sweep in its folder.

    Args:
        definition: The sweep file that the runs are of.
        runs: The runs that it stands for, or those of them that were asked for.
        out: The folder of the sweep; it may hold other runs of it, which stay.
    """

    def __init__(self, definition: SweepFile, runs: Sequence[SweepRun], out: Path) -> None:
        self.definition, self.runs, self.out = definition, tuple(runs), out
        self._began: dict[str, float] = {}

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """What is to be done, by name, in order. Raises RecipeError when the recipe of a run has faults."""
        from fedmr_merge.recipe.sweep_plan import plan_tasks  # imports torch

        return {task.name: task for task in plan_tasks(self.runs)}

    def prepare(self) -> None:
        """Check every run's recipe, make the folder, and write down what its runs are.

        Raises:
            RecipeError: If the recipe of a run has faults.
            RunError: If it is the folder of another sweep, or of something else.
        """
        _ = self.tasks
        published = _published(self.definition)
        self._known()
        with Claims(self.out / CLAIMS) as claims:  # another process may add runs of its own at the same time
            while not claims.take(SWEEP_FILE):
                time.sleep(_WAIT_SECONDS)
            description = SweepDescription(
                name=self.definition.name,
                axes={axis: list(choices) for axis, choices in self.definition.axes.items()},
                published=published,
                runs={**self._known(), **{run.name: DescribedRun(dict(run.choices), run.seed) for run in self.runs}},
            )
            write_json(self.out / SWEEP_FILE, description.to_json())
        for folder in (RUNS, OUTCOMES):
            (self.out / folder).mkdir(exist_ok=True)

    def _known(self) -> Mapping[str, DescribedRun]:
        """Return the runs that the folder holds so far. Raises RunError when it is not one of this sweep."""
        if not (self.out / SWEEP_FILE).exists():
            # Another process that begins this sweep has made the first of these, and then stages the second.
            found = [path.name for path in self.out.iterdir()] if self.out.is_dir() else []
            if all(name == CLAIMS or name.startswith(f".{SWEEP_FILE}.") for name in found):
                return {}
        if not (self.out / SWEEP_FILE).exists():  # still
            raise RunError(
                f"{self.out}: is not empty and does not hold a sweep",
                hint="choose another folder with --out",
                path=self.out,
            )
        before = read_sweep_folder(self.out)
        if before.name != self.definition.name:
            raise RunError(
                f"{self.out}: holds the sweep {before.name!r}, not {self.definition.name!r}",
                hint="choose another folder with --out",
                path=self.out,
            )
        return before.runs

    def execute(self, jobs: int, shard: tuple[int, int] = (1, 1)) -> Iterator[Event]:
        """Do the runs that are not done, yielding what happens.

        Args:
            jobs: How many runs to do at a time.
            shard: (i, n) does the i-th of n shares of the runs, counted from 1.

        A run that fails is recorded, and the others are still done. A run that another process works on is left to it,
        but rounds that a run of this one begins with are waited for.
        """
        waiting: list[Task] = []
        for task in self._share(shard):
            if self._is_done(task):
                yield Skipped(task.name, "done already")
            else:
                waiting.append(task)
        with Claims(self.out / CLAIMS) as claims, Workers(jobs) as workers:
            while waiting or workers.busy:
                began = False
                while workers.free and (claimed := self._claim(waiting, claims)) is not None:
                    began = True
                    waiting.remove(claimed)
                    yield from self._begin(claimed, claims, workers)
                if workers.busy:
                    for event in workers.events(_POLL_SECONDS):
                        yield event
                        if isinstance(event, Warned):
                            self._record(self.tasks[event.name], warning=event.message)
                        elif isinstance(event, Ended):
                            yield from self._end(event, waiting, claims)
                elif waiting and not began:
                    if all(claims.is_alive(task.name) for task in waiting):
                        break
                    # Another process runs rounds that a run of this one begins with, or has died a moment ago.
                    time.sleep(_POLL_SECONDS)
        for task in waiting:
            yield Skipped(task.name, "another process works on it")

    def _share(self, shard: tuple[int, int]) -> list[Task]:
        """Return the tasks of a share of the runs, and those that they are still to begin with."""
        wanted: set[str] = set()
        for run in self.runs[shard[0] - 1 :: shard[1]]:
            task: Task | None = self.tasks[run.name]
            while task is not None:
                wanted.add(task.name)
                task = self._begins_with(task)
        return [task for task in self.tasks.values() if task.name in wanted]

    def _begins_with(self, task: Task) -> Task | None:
        """Return the task that another one is still to begin with; None when it is done, or has begun by itself."""
        if task.beginning is None or (self.out / task.folder).exists() or self._is_done(task):
            return None
        return self.tasks[task.beginning.task]

    def _claim(self, waiting: Sequence[Task], claims: Claims) -> Task | None:
        """Claim the first task that can begin and that no other process works on."""
        for task in waiting:
            beginning = self._begins_with(task)
            if (beginning is None or self._is_done(beginning)) and claims.take(task.name):
                return task
        return None

    def _begin(self, task: Task, claims: Claims, workers: Workers) -> Iterator[Event]:
        if self._is_done(task):  # by another process, since this one looked
            claims.release(task.name)
            yield Skipped(task.name, "done by another process")
            return
        yield Started(task.name)
        self._began[task.name] = time.time()
        source = task.beginning
        beginning = None if source is None else (self.out / self.tasks[source.task].folder, source.round)
        workers.start(Job(task.name, self.out / task.folder, task.raw, beginning, task.code_folders))

    def _end(self, event: Ended, waiting: list[Task], claims: Claims) -> Iterator[Event]:
        """Record how a task ended; what begins with one that failed has failed, too."""
        self._record(self.tasks[event.name], done=event.fault is None, fault=event.fault)
        claims.release(event.name)
        if event.fault is None:
            return
        for task in [task for task in waiting if self._begins_with(task) is self.tasks[event.name]]:
            waiting.remove(task)
            failed = Ended(task.name, f"its first rounds, {event.name}, failed")
            yield failed
            yield from self._end(failed, waiting, claims)

    def _outcome(self, task: Task) -> Path:
        return self.out / OUTCOMES / f"{task.name}.json"

    def _is_done(self, task: Task) -> bool:
        if task.folder.parts[0] == BEGINNINGS and not (self.out / task.folder).exists():
            return False  # removed, as no run needed it any more
        found = self._recorded(task)
        return found.get("done") is True and found.get("recipe") == _digest(task.raw)

    def _recorded(self, task: Task) -> dict[str, Any]:
        """Return what is recorded of how a task ended; nothing where it has not begun."""
        try:
            content = json.loads(self._outcome(task).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _record(self, task: Task, *, done: bool = False, fault: str | None = None, warning: str | None = None) -> None:
        seconds = round(time.time() - self._began.get(task.name, time.time()), 1)
        warnings = dict.fromkeys([*self._recorded(task).get("warnings", ()), *([warning] if warning else [])])
        outcome = {"done": done, "fault": fault, "recipe": _digest(task.raw), "seconds": seconds}
        write_json(self._outcome(task), outcome | {"warnings": list(warnings)})


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
            path=path,
        ) from error
