"""What a terminal shows while a bar or a live table is on it."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from fedmr_merge.cli import console, progress, sweep
from fedmr_merge.recipe.sweep import Started
from fedmr_merge.recipe.sweep_workers import Progress

RESULT = "evaluate: test accuracy 0.9, beside /a/long/path/that/must/be/copied/from/the/terminal/model.safetensors"
WARNING = "client 3 diverged in round 2, and its slot keeps the model that it was sent; see training.on_divergence"


class Terminal:
    """A terminal of 40 columns; `screen` returns the lines on it, which it does not wrap."""

    def __init__(self) -> None:
        self.main, end = pty.openpty()
        self.stream = os.fdopen(end, "w", encoding="utf-8")

    def screen(self) -> list[str]:
        self.stream.flush()
        written = os.read(self.main, 1 << 16).decode()
        lines, row = [""], 0
        for part in re.findall(r"\x1b\[[0-9?;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
            if part == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif part == "\x1b[1A":
                row -= 1
            elif part == "\x1b[2K":
                lines[row] = ""
            elif part[0] not in "\r\x1b":  # a colour, or whether the cursor is shown
                lines[row] += part
        return [line.rstrip() for line in lines]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    for name, value in {"TERM": "xterm", "COLUMNS": "40", "LINES": "20"}.items():
        monkeypatch.setenv(name, value)
    shown = Terminal()
    os.set_blocking(shown.main, False)  # a test that shows nothing fails
    yield shown
    shown.stream.close()
    os.close(shown.main)


@contextlib.contextmanager
def bar_of_rounds() -> Iterator[Callable[[], None]]:
    with progress.rounds_progress("small", 3) as show:
        yield lambda: show(1, "accuracy 0.5")


@contextlib.contextmanager
def bar_of_bytes() -> Iterator[Callable[[], None]]:
    with progress.bytes_progress("copying", 100) as show:
        yield lambda: show(50)


@contextlib.contextmanager
def table_of_a_sweep() -> Iterator[Callable[[], None]]:
    board = sweep.Board({"a", "b"}, jobs=2)
    board.note(Started("a"), say=lambda _: None)
    with sweep._display(board) as show:
        yield lambda: show(Progress("a", 1, 3, "accuracy", 0.5))


@pytest.mark.parametrize("display", [bar_of_rounds, bar_of_bytes, table_of_a_sweep])
@pytest.mark.parametrize("to_file", [True, False])
def test_results_and_warnings_are_whole_while_progress_is_shown(
    display: Callable[[], AbstractContextManager[Callable[[], None]]],
    to_file: bool,
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setattr(sys, "stdout", stdout if to_file else terminal.stream)
    with display() as show:
        console.say(RESULT)
        console.complain("warning", WARNING)
        show()
    lines = terminal.screen()
    assert f"warning: {WARNING}" in lines
    assert stdout.getvalue() == f"{RESULT}\n" * to_file
    assert (RESULT in lines) == (not to_file)
