"""The command for many runs: sweep."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmr_merge.cli import console, progress
from fedmr_merge.cli.help import App
from fedmr_merge.cli.stopping import saving_when_terminated

if TYPE_CHECKING:
    from rich.table import Table

    from fedmr_merge.recipe.sweep import Event, Sweep

_SAY_EVERY_SECONDS = 60.0


def register(app: App) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel="Train")(sweep)


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep file, or a name of `fedmr-merge recipes`.")],
    only: Annotated[
        str | None,
        typer.Option(help="Choices, separated by commas; the others of their axes are left out.", metavar="A,B"),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds instead of the file's, e.g. 0,1,2.", metavar="S,T")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the base recipe, e.g. training.lr=0.05; repeatable.", metavar="PATH=VALUE"),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds of each run; its training stages keep their shares.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default one, or one on each visible GPU.")
    ] = None,
    shard: Annotated[
        str, typer.Option(help="Do the I-th of N shares of the runs, for many machines.", metavar="I/N")
    ] = "1/1",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The folder of the sweep; sweeps/NAME by default.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report the runs and what they will take; write nothing.")
    ] = False,
) -> None:
    """Do the runs of a sweep, or resume it.

    Every run is an ordinary run folder. A sweep that was interrupted is resumed by the same command; a run that fails
    is recorded, and the others are still done.

    Example: fedmr-merge sweep paper/table1 --only cnn,cifar10,alpha=0.1 --seeds 0,1,2 --jobs 2
    """
    from fedmr_merge.recipe.ready_made import locate_sweep
    from fedmr_merge.recipe.sweep import Sweep
    from fedmr_merge.recipe.sweep_file import named_choices, read_sweep, sweep_runs
    from fedmr_merge.recipe.sweep_workers import visible_gpus
    from fedmr_merge.recipe.text import parse_setting

    definition = read_sweep(locate_sweep(file))
    runs = sweep_runs(
        definition,
        only=named_choices(definition, only) if only else (),
        seeds=_numbers(seeds, "--seeds") if seeds else None,
        settings=[parse_setting(setting) for setting in settings or ()],
        rounds=rounds,
    )
    share = _shard(shard)
    opened = Sweep(definition, runs, out or Path("sweeps") / definition.name)
    jobs = jobs or len(visible_gpus()) or 1
    if dry_run:
        _show(opened, share, jobs)
        return
    opened.prepare()
    with saving_when_terminated():
        failed = _follow(opened, share, jobs)
    _closing_words(opened)
    if failed:
        raise typer.Exit(2)


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option}: expected numbers separated by commas, found {text[:60]!r}") from None


def _shard(text: str) -> tuple[int, int]:
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise typer.BadParameter(f"--shard: expected I/N with I from 1 to N, found {text[:60]!r}")
    return int(first), int(count)


def _follow(sweep: Sweep, share: tuple[int, int], jobs: int) -> int:
    """Do the runs, showing them; returns how many failed."""
    from fedmr_merge.recipe.sweep_workers import Ended, Warned

    failed = 0
    runs = {run.name for run in sweep.runs[share[0] - 1 :: share[1]]}
    console.say(f"{sweep.definition.name}: {console.plural(len(runs), 'run')}, {jobs} at a time, in {sweep.out}")
    board = Board(runs, jobs)
    try:
        with _display(board) as show:
            for event in sweep.execute(jobs, share):
                show(event)
                if isinstance(event, Warned):
                    console.complain("warning", f"{event.name}: {event.message}")
                elif isinstance(event, Ended) and event.fault:
                    failed += 1
                    console.complain("error", f"{event.name}: {event.fault}")
    except (KeyboardInterrupt, SystemExit):
        console.complain(
            "stopped", f"{board.left} of {console.plural(len(runs), 'run')} left; the same command resumes them"
        )
        raise
    return failed


@contextlib.contextmanager
def _display(board: Board) -> Iterator[Callable[[Event], None]]:
    """Give a function that shows an event: as a live table in a terminal, as lines elsewhere."""
    if console.quiet or not sys.stderr.isatty():
        yield lambda event: board.note(event, say=console.say)
        return
    from rich.live import Live

    with Live(**progress.beside_results(), get_renderable=board.table, refresh_per_second=2) as live:

        def show(event: Event) -> None:
            board.note(event, say=lambda _: None)
            live.refresh()

        yield show


class Board:
    """What is known of the runs of a sweep while they are done.

    Rounds that several runs have in common are shown like a run, and are not counted as one.

    Args:
        runs: The names of the runs that are asked for.
        jobs: How many are done at a time.
        say_every_seconds: How often a run's round is said where there is no table.
    """

    def __init__(self, runs: Set[str], jobs: int, *, say_every_seconds: float = _SAY_EVERY_SECONDS) -> None:
        self.runs, self.jobs = runs, jobs
        self.running: dict[str, Going] = {}
        self.values: dict[str, str] = {}  # name → its metric, and the last value
        self.counts: Counter[str] = Counter()
        self._every = say_every_seconds
        self._seconds: list[float] = []  # that the runs that are done took

    def note(self, event: Event, *, say: Callable[[str], None]) -> None:
        """Take an event in, and say it."""
        from fedmr_merge.recipe.sweep import Skipped, Started
        from fedmr_merge.recipe.sweep_workers import Ended, Progress

        if isinstance(event, Started):
            self.running[event.name] = Going()
            say(f"{event.name}: started")
        elif isinstance(event, Progress):
            going = self.running[event.name]
            going.advance(event.round, event.rounds)
            if event.value is not None:
                self.values[event.name] = f"{event.metric} {event.value:.4f}"
            if time.monotonic() - going.said >= self._every:
                going.said = time.monotonic()
                found = [f"round {event.round} of {event.rounds}", self.values.get(event.name), going.left()]
                say(f"{event.name}: {', '.join(filter(None, found))}")
        elif isinstance(event, Skipped):
            self.counts["skipped"] += event.name in self.runs
            say(f"{event.name}: {event.reason}")
        elif isinstance(event, Ended):
            over = self.running.pop(event.name, None)  # None: what it begins with has failed
            is_run = event.name in self.runs
            if event.fault:
                self.counts["failed"] += is_run
            else:
                self.counts["done"] += is_run
                if is_run and over:
                    self._seconds.append(time.monotonic() - over.begun)
                say(
                    f"{event.name}: done, {self.values.get(event.name, 'it was complete already')}; {self._remaining()}"
                )

    @property
    def left(self) -> int:
        """How many runs are neither done nor failed."""
        return len(self.runs) - sum(self.counts.values())

    def _remaining(self) -> str:
        """How much is left to do."""
        words = f"{self.left} of {len(self.runs)} left"
        if not self._seconds or not self.left:
            return words
        return f"{words}, about {_duration(sum(self._seconds) / len(self._seconds) * self.left / self.jobs)}"

    def table(self) -> Table:
        """Return the live table."""
        from rich.table import Table

        table = Table(
            title=", ".join([*(f"{count} {what}" for what, count in self.counts.items() if count), self._remaining()])
        )
        for column in ("run", "round", "result", "time left"):
            table.add_column(column, justify="left" if column == "run" else "right")
        for name, going in self.running.items():
            rounds = f"{going.round}/{going.rounds}" if going.rounds else ""
            table.add_row(name, rounds, self.values.get(name, ""), going.left())
        return table


@dataclass
class Going:
    """A run that is being done."""

    begun: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)  #: when its round was last said
    round: int = 0
    rounds: int = 0
    _first: tuple[int, float] | None = None  # a round of this process, and when it was over

    def advance(self, round: int, rounds: int) -> None:
        """A round is over."""
        self.round, self.rounds = round, rounds
        self._first = self._first or (round, time.monotonic())

    def left(self) -> str:
        """Return for how long it will go on, as its rounds since it was started or resumed have taken; '' at first."""
        first, since = self._first or (0, 0.0)
        if self.round == first:
            return ""
        return f"{_duration((time.monotonic() - since) / (self.round - first) * (self.rounds - self.round))} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _show(sweep: Sweep, share: tuple[int, int], jobs: int) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # a dry run fetches nothing
    from fedmr_merge.recipe.sweep_forecast import forecast

    runs = sweep.runs[share[0] - 1 :: share[1]]
    found = forecast(runs)
    axes = list(sweep.definition.axes)
    rows = [
        [
            *(cost.run.choices[axis] for axis in axes),
            str(cost.run.seed),
            str(cost.rounds),
            f"{cost.seconds_a_round:.2f}" if cost.seconds_a_round is not None else "",
            console.size(round(cost.sent_bytes)) if cost.sent_bytes is not None else "",
            console.size(cost.disk_bytes) if cost.disk_bytes is not None else "",
        ]
        for cost in found
    ]
    columns = [*axes, "seed", "rounds", "s a round", "sent and received", "on disk"]
    console.table(columns, rows, right=columns[len(axes) :])
    seconds = sum(cost.seconds_a_round * cost.rounds for cost in found if cost.seconds_a_round is not None)
    untimed = sum(cost.seconds_a_round is None for cost in found)
    disk = console.size(sum(cost.disk_bytes or 0 for cost in found))
    console.say(
        f"{console.plural(len(runs), 'run')}: {seconds / 3600:.1f} hours of one job, {seconds / 3600 / jobs:.1f} with "
        f"{jobs} at a time; {disk} on disk"
        + (f"; {untimed} of them could not be timed here and are not counted" if untimed else "")
    )
    for reason in dict.fromkeys(cost.absent for cost in found if cost.absent):
        console.complain("warning", reason)
    console.say(f"dry run: nothing was written to {sweep.out}")


def _closing_words(sweep: Sweep) -> None:
    import shlex

    folder = shlex.quote(str(sweep.out))
    console.say(f"  runs       {sweep.out / 'runs'}")
    console.say("next:")
    console.say(f"  compare    fedmr-merge compare {folder}")
    console.say(f"  report     fedmr-merge report {folder} -o report")
