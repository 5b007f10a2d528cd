"""How commands speak: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedmr_merge.errors import FedmrMergeError, printable
from fedmr_merge.errors import listed as listed

#: Set by the options of that name, which may stand anywhere on the command line.
quiet = False
debug = False
stopped = False  #: whether a command has said what an interruption left


class PrintError(FedmrMergeError):
    """A result that cannot be printed; what the command wrote or sent is not undone by that."""

    exit_code = 1

    def __init__(self, error: OSError) -> None:
        super().__init__(
            f"standard output: cannot be written: {error.strerror}",
            hint="the command did its work; only its report is missing",
        )


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
    except BrokenPipeError:  # the reader went away, which is not an error
        raise
    except OSError as error:
        raise PrintError(error) from error


def write(text: str) -> None:
    """Print a text as it is, also with --quiet: what was asked for by name, such as help or a page."""
    with _to_stdout():
        print(text)  # noqa: T201
        sys.stdout.flush()


def say(text: str = "") -> None:
    """Print a line of the result; nothing with --quiet. Characters that control a terminal are shown as escapes."""
    if not quiet:
        with _to_stdout():
            print("\n".join(map(printable, text.split("\n"))))  # noqa: T201


def complain(kind: str, text: str) -> None:
    """Print `error: …`, `hint: …` or `warning: …` on standard error, if that can be written.

    Lines after the first are a list. Characters that control a terminal are shown as escapes.
    """
    global stopped
    stopped = stopped or kind == "stopped"
    with contextlib.suppress(OSError):
        _complain(kind, "\n".join(map(printable, text.split("\n"))))


def _complain(kind: str, text: str) -> None:
    colours = {"error": "bold red", "hint": "cyan", "warning": "yellow", "note": "cyan", "stopped": "bold yellow"}
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        terminal = Console(stderr=True, soft_wrap=True)
        with terminal.capture() as coloured:
            terminal.print(Text.assemble((f"{kind}: ", colours[kind]), text), highlight=False)
        # Not by rich itself, which would write into a display that is shown, and not above it.
        print(coloured.get(), end="", file=sys.stderr)  # noqa: T201
    else:
        print(f"{kind}: {text}", file=sys.stderr)  # noqa: T201


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print a table: framed on a terminal, aligned columns elsewhere. The columns named in `right` hold numbers."""
    if not quiet:
        with _to_stdout():
            _table(columns, rows, right)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    rows = [[printable(cell) for cell in row] for row in rows]
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
