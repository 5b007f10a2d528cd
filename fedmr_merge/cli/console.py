"""How commands speak: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fedmr_merge.errors import FedmrMergeError

#: Set by the options of that name, which may stand anywhere on the command line.
quiet = False
debug = False

_LINE_EVERY_SECONDS = 5.0


class PrintError(FedmrMergeError):
    """A result that cannot be printed: what the command wrote or sent is not undone by that."""

    exit_code = 1


def prepare_streams() -> None:
    """Let no text fail by its encoding, nor by a stream that was closed before the program began (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - to the end
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Write out the result. Raises PrintError where that cannot be done."""
    with _to_stdout():
        sys.stdout.flush()


def abandon_streams() -> None:
    """Forget what could not be written out, so that the interpreter does not try again when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _to_stdout() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # nobody reads on, which is no error
        raise
    except OSError as error:
        raise PrintError(
            f"standard output: cannot be written: {error.strerror}", hint="what the command did is done all the same"
        ) from error


def say(text: str = "") -> None:
    """Print a line of the result; nothing with --quiet."""
    if not quiet:
        with _to_stdout():
            print(text)  # noqa: T201


def complain(kind: str, text: str) -> None:
    """Print `error: …`, `hint: …` or `warning: …` on standard error, if that can be written."""
    with contextlib.suppress(OSError):
        _complain(kind, text)


def _complain(kind: str, text: str) -> None:
    colours = {"error": "bold red", "hint": "cyan", "warning": "yellow", "note": "cyan"}
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        line = Text.assemble((f"{kind}: ", colours[kind]), text)
        Console(stderr=True, soft_wrap=True).print(line, highlight=False)
    else:
        print(f"{kind}: {text}", file=sys.stderr)  # noqa: T201


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print a table: framed on a terminal, aligned columns elsewhere. The columns named in `right` hold numbers."""
    if not quiet:
        with _to_stdout():
            _table(columns, rows, right)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            cells = [
                cell.rjust(width) if name in right else cell.ljust(width)
                for cell, width, name in zip(row, widths, columns, strict=True)
            ]
            print("  ".join(cells).rstrip())  # noqa: T201
        return
    from rich.console import Console
    from rich.table import Table

    framed = Table()
    for name in columns:
        framed.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        framed.add_row(*row)
    Console(markup=False, highlight=False).print(framed)


@contextlib.contextmanager
def bytes_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Give a function to call with the number of bytes done; shows a bar on a terminal, a line now and then
    elsewhere.
    """
    if quiet:
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        yield _plain_progress(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def _plain_progress(what: str, total: int) -> Callable[[int], None]:
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _LINE_EVERY_SECONDS:
            last = now
            share = f"{100 * done / total:.0f} %" if total else ""
            print(f"{what}: {size(done)} of {size(total)} {share}", file=sys.stderr)  # noqa: T201

    return advance


@contextlib.contextmanager
def rounds_progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Give a function to call with (rounds done, facts of the last one); shows a bar with the time left on a terminal,
    a line now and then elsewhere.
    """
    if quiet:
        yield lambda _round, _facts: None
        return
    if not sys.stderr.isatty():
        last = 0.0

        def line(round: int, facts: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _LINE_EVERY_SECONDS or round == total:
                last = now
                print(f"{what}: round {round} of {total}, {facts}", file=sys.stderr)  # noqa: T201

        yield line
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=done, facts="")
        yield lambda round, facts: bar.update(task, completed=round, facts=facts)


def size(nbytes: int) -> str:
    """Return a size as people read it, in decimal units: `1.3 GB`."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def plural(count: int, noun: str) -> str:
    """Return `1 slot`, `2 slots`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: Sequence[str], between: str = "; ", shown: int = 5) -> str:
    """Return the first items in one line, and how many more there are."""
    more = [f"and {len(items) - shown:,} more"] if len(items) > shown else []
    return between.join([*items[:shown], *more])
