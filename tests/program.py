"""The program in processes of their own that start in no time.

`fedmr-merge run` imports torch and matplotlib, which takes two seconds of CPU time. Here one process
imports them, and every command is forked from it: with its own arguments, folder, environment, output, errors, exit
code and signals, and without anything that another command or test has changed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: What `run` imports, but for what reads the environment when it is imported (huggingface_hub, datasets).
_IMPORTED = ["fedmr_merge.recipe.run", "fedmr_merge.report.figures", "fedmr_merge.cli.app"]


class Program:
    """A command that is running.

    Args:
        arguments: What stands behind `fedmr-merge`.
        cwd: The folder to run it in.
        environment: Variables to set, beside those of this process.
    """

    def __init__(self, *arguments: object, cwd: Path, **environment: str) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self._streams = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._streams.name) / name for name in ("out", "err"))
        job = (self.arguments, cwd, {**os.environ, **environment}, self._out, self._err)
        self._process: Any = _forks().Process(target=_run, args=job)
        self._process.start()

    @property
    def is_running(self) -> bool:
        return self._process.exitcode is None

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def wait(self, timeout_seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Wait for its end, and return what came of it."""
        self._process.join(timeout_seconds)
        if self.is_running:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"still running after {timeout_seconds} s: {self.arguments}")
        code = self._process.exitcode
        done = subprocess.CompletedProcess(self.arguments, code, self._out.read_text(), self._err.read_text())
        self._streams.cleanup()
        return done


def fedmr_merge(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return Program(*arguments, cwd=cwd, **environment).wait()


@cache
def _forks() -> Any:
    """Return where processes are forked from: a process without threads, which is started now."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *([before] if before else [])])
    try:
        context.Process(target=os.getpid).start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def _run(arguments: list[str], cwd: Path, environment: Mapping[str, str], out: Path, err: Path) -> None:
    """Be the program. Runs in the forked process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell ignore it
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    from fedmr_merge.cli import main

    main(arguments)
