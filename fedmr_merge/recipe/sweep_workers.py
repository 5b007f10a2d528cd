"""The processes of a sweep that run recipes: each runs one at a time, and one that dies takes only its own run with it.

A worker is a process of its own, so that a run which is killed for its memory, or crashes, does not end the others; it
lives for many runs, so that torch is imported once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from fedmr_merge.cores import usable_cores
from fedmr_merge.errors import FedmrMergeError, RunInUseError

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A run for a worker to do."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]  #: unchecked
    beginning: tuple[Path, int] | None = None  #: the run whose first rounds it begins with, and after which of them
    code_folders: tuple[Path, ...] = ()  #: where modules are looked for that the recipe names


@dataclass(frozen=True)
class Progress:
    """A round of a run is over."""

    name: str
    round: int
    rounds: int  #: of the whole run
    metric: str = ""  #: the metric that decides
    value: float | None = None  #: of the global model on the test data; None where the round was not evaluated


@dataclass(frozen=True)
class Warned:
    """A run goes on, and something is to be known about it."""

    name: str
    message: str


@dataclass(frozen=True)
class Ended:
    """A run is over; `fault` says why it failed, if it did."""

    name: str
    fault: str | None = None


def visible_gpus() -> list[str]:
    """Return the identifiers of the GPUs that this process may use, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu and gpu != "-1"]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number, _ in enumerate(folder.iterdir())] if folder.is_dir() else []


class Workers:
    """Some worker processes. Use as a context manager: it stops them, and what they run is saved.

    Args:
        count: How many runs are done at a time.
    """

    def __init__(self, count: int) -> None:
        gpus = visible_gpus()
        threads = max(1, usable_cores() // count)
        self._environments = [_environment(threads, gpus[slot % len(gpus)] if gpus else None) for slot in range(count)]
        self._idle = list(range(count))
        self._processes: dict[int, tuple[Any, Connection]] = {}
        self._jobs: dict[int, Job] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection in self._processes.values():
            connection.close()
            process.terminate()  # it saves what is done, as after Ctrl-C
        for process, _connection in self._processes.values():
            process.join()

    @property
    def free(self) -> bool:
        """Whether a worker has nothing to do."""
        return bool(self._idle)

    @property
    def busy(self) -> bool:
        """Whether a worker has something to do."""
        return bool(self._jobs)

    def start(self, job: Job) -> None:
        """Give a job to a worker that is free."""
        slot = self._idle.pop()
        if slot not in self._processes:
            self._processes[slot] = self._spawn(slot)
        self._processes[slot][1].send(job)
        self._jobs[slot] = job

    def events(self, timeout_seconds: float | None = None) -> Iterator[Progress | Warned | Ended]:
        """Wait for the workers, and yield what they have to say. A worker that died has failed its run."""
        ready = wait([self._processes[slot][1] for slot in self._jobs], timeout_seconds)
        for slot in [slot for slot in self._jobs if self._processes[slot][1] in ready]:
            process, connection = self._processes[slot]
            event: Progress | Warned | Ended
            try:
                event = connection.recv()
            except (EOFError, OSError):
                del self._processes[slot]
                process.join()
                event = Ended(self._jobs[slot].name, f"its process ended: {_reason(process.exitcode)}")
            if isinstance(event, Ended):
                del self._jobs[slot]
                self._idle.append(slot)
            yield event

    def _spawn(self, slot: int) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there,), daemon=True)
        with _changed_environment(self._environments[slot]):
            process.start()
        there.close()
        return process, here


def _environment(threads: int, gpu: str | None) -> dict[str, str]:
    found = {"OMP_NUM_THREADS": str(threads)}
    return found if gpu is None else found | {"CUDA_VISIBLE_DEVICES": gpu}


@contextmanager
def _changed_environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _reason(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}" + (", perhaps for its memory" if code == -9 else "")
    return f"exit code {code}"


def _work(connection: Connection) -> None:
    """Do jobs until the other side is gone. The body of a worker process."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the process that started this one, which then stops it
    try:
        while True:
            job: Job = connection.recv()
            try:
                _follow(job, connection)
            except FedmrMergeError as error:
                connection.send(Ended(job.name, str(error)))
            except (ValueError, RuntimeError, MemoryError) as error:
                connection.send(Ended(job.name, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
    except (EOFError, BrokenPipeError):
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # while Python ends, an exception of `stop` would be printed


def _follow(job: Job, connection: Connection) -> None:
    from fedmr_merge.recipe.own import Own
    from fedmr_merge.recipe.run import RoundDone, Run
    from fedmr_merge.recipe.schema import parse_recipe
    from fedmr_merge.runs.resume import fork_run

    recipe = parse_recipe(job.recipe, job.name, Own(job.code_folders))
    if job.beginning is not None and not job.folder.exists():
        source, round = job.beginning
        _when_free(lambda: fork_run(source, round, job.folder, recipe.to_yaml()))
    with _when_free(lambda: Run(recipe, job.folder)) as run:
        metric = run.federation.task.decisive
        for warning in run.warnings():
            connection.send(Warned(job.name, warning))
        for event in run.execute():
            if isinstance(event, RoundDone):
                value = event.result.metrics.get(metric.key)
                connection.send(Progress(job.name, event.result.round, recipe.rounds, metric.name, value))
    connection.send(Ended(job.name))


def _when_free(action: Callable[[], T]) -> T:
    """Do what needs a run folder, as soon as no other process is at work on it.

    That is another worker which begins with the same rounds, or one that is left of a sweep which was killed: it ends
    after its round.
    """
    while True:
        try:
            return action()
        except RunInUseError:
            time.sleep(0.1)
