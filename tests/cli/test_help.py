"""`--help`: every command has one, with words that a reader knows and an example that can be typed."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from fedmr_merge.cli.app import app
from fedmr_merge.cli.help import App

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_program_lists_every_command_with_its_whole_summary(run: Run) -> None:
    code, out, _ = run("-h")
    assert code == 0
    assert run("--help")[1] == out
    words = " ".join(out.split())
    for path, command in COMMANDS.items():
        assert f" {path[0]} " in words
        if len(path) == 1:
            assert " ".join(command.help.split("\n\n")[0].split()) in words
    assert "..." not in out.replace("COMMAND ...", "")


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_help_of_a_command(path: tuple[str, ...], run: Run) -> None:
    code, out, _ = run(*path, "-h")
    assert code == 0
    assert not re.search(r"<\w+(\[| range|>)", out), "a type of Python's"
    (example,) = re.findall(r"^Example: fedmr-merge (.*)$", out, re.MULTILINE)
    words = shlex.split(example)
    assert tuple(words[: len(path)]) == path
    known = {option for parameter in COMMANDS[path].params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= known
    assert out.count("\nOptions:\n") == 1


def test_options_stand_in_groups_and_choices_are_shown(run: Run) -> None:
    out = run("recombine", "--help")[1]
    assert [line for line in out.splitlines() if re.fullmatch(r"\w+:", line)] == [
        *("Arguments:", "Output:", "Plan:", "Mean:", "Options:")
    ]
    assert "--layout same|store" in out
    assert "--accumulate float32|float64" in out
    assert "--pin PATTERN" in out


def test_run_shows_something_on_a_terminal_before_torch_is_imported(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "fedmr_merge", "run", "digits", "--dry-run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=follower)
    seen, deadline = b"", time.monotonic() + 30
    while b"loading torch" not in seen and time.monotonic() < deadline:
        if select.select([leader], [], [], 0.1)[0]:
            seen += os.read(leader, 100)
    mapped = Path(f"/proc/{process.pid}/maps")
    torch_is_there = "libtorch" in mapped.read_text() if mapped.exists() else False
    process.kill()
    process.wait()
    os.close(follower)
    os.close(leader)
    assert b"loading torch" in seen
    assert not torch_is_there


# The program builds the command that is typed, and behaves as if it had built all of them.

WHOLE = typer.main.get_command(app)


def named(name: str) -> dict[str, object]:
    """Return the commands of the program that is built for a command line that begins with this word."""
    return dict(typer.main.get_command(app._with(name)).commands)


@pytest.mark.parametrize("name", sorted(WHOLE.commands))
def test_a_command_is_built_alone_with_all_its_options(name: str) -> None:
    (found,) = named(name).values()
    whole = WHOLE.commands[name]
    assert [one.name for one in found.params] == [one.name for one in whole.params]
    assert sorted(getattr(found, "commands", ())) == sorted(getattr(whole, "commands", ()))


@pytest.mark.parametrize("name", ["", "recombin", "no-such-command"])
def test_what_names_no_command_is_answered_by_the_whole_program(name: str) -> None:
    assert named(name).keys() == WHOLE.commands.keys()


def test_commands_are_found_by_the_names_that_typer_gives_them() -> None:
    program = App("A program.")

    @program.callback()
    def options() -> None: ...

    @program.command()
    def two_words() -> None: ...

    @program.command("other")
    def third() -> None: ...

    for name in ("two-words", "other"):
        assert list(typer.main.get_command(program._with(name)).commands) == [name]
