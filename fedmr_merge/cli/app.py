"""The program: its commands, and what happens to errors."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Annotated, Any

import typer

import fedmr_merge
from fedmr_merge.cli import (
    average,
    compare,
    console,
    flower,
    inspect,
    proof,
    publish,
    recipes,
    recombine,
    rules,
    sweep,
    train,
)
from fedmr_merge.cli.help import App
from fedmr_merge.errors import FedmrMergeError, shown
from fedmr_merge.hub.waiting import on_wait

app = App("Merge models by recombination: every layer of every model lives on in one and only one new model.")
for room in (recombine, average, inspect, proof, train, sweep, compare, publish, recipes):
    room.register(app)
app.add_typer(rules.app, name="rules", rich_help_panel="Look at checkpoints")
app.add_typer(flower.flower_app, name="flower", rich_help_panel="Train")
app.add_typer(proof.store_app, name="store", rich_help_panel="Prove and undo")

_INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended
#: What typer raises for a command line that makes no sense; it has no name that is public in all versions.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _show_version(wanted: bool) -> None:
    if wanted:
        console.write(f"fedmr-merge {fedmr_merge.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only. Can be given anywhere.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Can be given anywhere.")
    ] = False,
) -> None:
    """Declare the options of all commands for --help; `main` takes --quiet and --debug out of the arguments."""


_DEBUG = "--debug shows where it was met"
_PERMISSIONS = "check the permissions of it and of the folders that it lies in"
_PATH_HINTS = {
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.ENAMETOOLONG: "most file systems allow names of 255 bytes: name a shorter path",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "name a file: this is a folder",
    errno.ELOOP: "its links lead back to themselves: name the file itself",
    errno.EROFS: "nothing can be written to this file system: choose another place",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Errors of this package, of its use and of the machine end with one line, a hint and their
    exit code; a traceback is a bug.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console.quiet, console.debug = _take(arguments, "--quiet"), _take(arguments, "--debug")
    if not console.debug:
        for name in ("HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):  # what they warn of ends in an error of ours, if at all
            os.environ.setdefault(name, "error")
    console.stopped = False
    console.prepare_streams()
    before = on_wait.set(lambda line: console.complain("warning", line))
    try:
        # The exit code where a command ended early: --help, Ctrl-C.
        code = app(args=arguments, prog_name="fedmr-merge", standalone_mode=False) or 0
        if code == _INTERRUPTED:
            _say_stopped()
        console.flush()
        sys.exit(code)
    except FedmrMergeError as error:
        _complain(str(error), _machine_hint(error.__cause__) or error.hint)
        sys.exit(error.exit_code)
    except _UsageError as error:
        _complain_of_usage(error)
        sys.exit(2)
    except typer.Abort:  # Ctrl-C in versions of typer that give it no exit code
        _say_stopped()
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:  # `fedmr-merge inspect … | head`
        sys.exit(1)
    except OSError as error:
        place = f"{shown(os.fsdecode(error.filename))}: " if isinstance(error.filename, str | bytes) else ""
        _complain(
            f"{place}{error.strerror or error}", _machine_hint(error) or _PATH_HINTS.get(error.errno or 0, _DEBUG)
        )
        sys.exit(2)
    except RecursionError:
        _complain("what was read is nested too deeply", _DEBUG)
        sys.exit(2)
    except MemoryError:
        _complain("out of memory", "--max-memory bounds a mean; --debug shows where it was met")
        sys.exit(2)
    finally:
        on_wait.reset(before)
        console.abandon_streams()


def _say_stopped() -> None:
    """Say what Ctrl-C left, where the command has not said it: outputs appear complete or not at all."""
    if not console.stopped:
        console.complain("stopped", "nothing is left half-written; the same command starts again")


def _complain(message: str, hint: str | None) -> None:
    if console.debug:
        traceback.print_exc()
    console.complain("error", message)
    if hint:
        console.complain("hint", hint)


def _machine_hint(error: BaseException | None) -> str | None:
    """What helps wherever it is met."""
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return "let a process have more open files: `ulimit -n 4096`"
    return None


def _complain_of_usage(error: Any) -> None:
    message = error.format_message().replace("Value error, ", "")
    if type(error).__name__ == "NoArgsIsHelpError":  # a group of commands alone: its help
        typer.echo(message, err=True)
        return
    console.complain("error", message[:1].lower() + " ".join(message[1:].split()).removesuffix("."))
    command = error.ctx.command_path if error.ctx else "fedmr-merge"
    console.complain("hint", f"`{command} --help` shows how it is used")


def _take(arguments: list[str], flag: str) -> bool:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    found = flag in arguments[:end]
    arguments[:end] = [argument for argument in arguments[:end] if argument != flag]
    return found
