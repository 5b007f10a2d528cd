"""Progress on standard error: a bar on a terminal, a line now and then elsewhere, nothing with --quiet."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fedmr_merge.cli import console

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

_LINE_EVERY_SECONDS = 5.0


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal that something takes a while, at once and until it is over. Imports nothing."""
    if console.quiet or not sys.stderr.isatty():
        yield
        return
    sys.stderr.write(f"{what} …")
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def beside_results() -> dict[str, Any]:
    """Return the options of a rich display on standard error that leaves the lines of a result as they are.

    On the terminal that shows the display, they are printed above it, and never wrapped, so that paths and commands can
    be copied. Otherwise standard output, such as a file, gets them.
    """
    from rich.console import Console

    return {"console": Console(stderr=True, soft_wrap=True), "redirect_stdout": sys.stdout.isatty()}


@contextlib.contextmanager
def bytes_progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Give a function to call with the number of bytes that were just done; `total` is None where it is not known."""
    if console.quiet:
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        yield _plain_bytes(what, total)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(), DownloadColumn()]
    columns += [TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, **beside_results(), transient=True) as bar:
        task = bar.add_task(what, total=total or None)
        yield lambda done: bar.advance(task, done)


def _plain_bytes(what: str, total: int | None) -> Callable[[int], None]:
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _LINE_EVERY_SECONDS:
            last = now
            of_all = f" of {console.size(total)}, {100 * done / total:.0f} %" if total else ""
            print(f"{what}: {console.size(done)}{of_all}", file=sys.stderr)  # noqa: T201

    return advance


@contextlib.contextmanager
def rounds_progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Give a function to call with (rounds done, facts of the last one)."""
    if console.quiet:
        yield lambda _round, _facts: None
        return
    if not sys.stderr.isatty():
        yield _plain_rounds(what, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[facts]}"), TimeElapsedColumn(), _time_left_column()]
    with Progress(*columns, **beside_results()) as bar:
        task = bar.add_task(what, total=total, completed=done, facts="")
        yield lambda round, facts: bar.update(task, completed=round, facts=facts)


def _plain_rounds(what: str, total: int) -> Callable[[int, str], None]:
    last = 0.0

    def line(round: int, facts: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_EVERY_SECONDS or round == total:
            last = now
            print(f"{what}: round {round} of {total}, {facts}", file=sys.stderr)  # noqa: T201

    return line


def _time_left_column() -> ProgressColumn:
    from rich.progress import TimeRemainingColumn
    from rich.text import Text

    class TimeLeft(TimeRemainingColumn):
        """The time that the rounds will take; nothing once they are done and the stages after them are at work."""

        def render(self, task: Task) -> Text:
            return Text("") if task.finished else Text.assemble(super().render(task), " left")

    return TimeLeft()
