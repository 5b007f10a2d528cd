"""Faults of the file system under a command: it is killed, or an operation fails, at any of its operations.

Commands run in processes of their own, which are forked from one that has imported everything.
"""

from __future__ import annotations

import builtins
import errno
import io
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attempts import Outcome

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        *("fedmr_merge.cli.app", "fedmr_merge.recipe.run", "fedmr_merge.report.page", "fedmr_merge.publish.write_card"),
        # What a run imports late: three of the four seconds of a process that trains.
        *("sklearn.datasets", "matplotlib.pyplot", "matplotlib.backends.backend_agg", "plotly.graph_objects"),
        *("torch._dynamo", "fedmr_merge.federated.training.engines.vmap", "fedmr_merge.federated.data.datasets.digits"),
    ]
)
LONGEST_SECONDS = 120.0
WRITES = ("write", "pwrite", "copy_file_range", "sendfile")
REMOVALS = ("unlink", "rmdir")
CHANGES = ("mkdir", "rename", "replace", "link", "symlink", "truncate", "fsync", "chmod")
WAYS = ("kill", "torn", "short", "full", "error")


@dataclass(frozen=True)
class Fault:
    """What befalls a command.

    kill: SIGKILL before the operation with this number; torn: in the middle of it, where it is a write;
    short: it writes a part of what it was given, and says so;
    full: from it on the disk is full; error: it alone fails with EIO;
    late: SIGKILL after so many seconds; limit: no file grows beyond so many bytes.
    """

    way: str = "none"
    number: float = 0


class _Injector:
    """Counts the operations of this process on the file system, and lets the fault happen."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self.last, self.names = fault, "", list[str]()

    def install(self) -> None:
        for name in (*WRITES, *REMOVALS, *CHANGES):
            setattr(os, name, self._counted(name, getattr(os, name)))
        os.open = self._counted("create", os.open, lambda _, flags, *__, **___: bool(flags & os.O_CREAT))
        io.open = builtins.open = self._opening(io.open)

    def _counted(
        self, name: str, real: Callable[..., Any], matters: Callable[..., bool] = lambda *_, **__: True
    ) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            if not matters(*arguments, **options):
                return real(*arguments, **options)
            self.names.append(name)
            self._befall(name, real, arguments)
            if self.fault.way == "short" and len(self.names) == self.fault.number:
                arguments = _shortened(name, arguments)
            return real(*arguments, **options)

        return operation

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return `open` with streams whose writes, made by the interpreter itself, are operations as well."""
        counted = self._counted

        class Raw(io.FileIO):
            def write(self, data: Any) -> Any:
                return counted("write", lambda _, part: io.FileIO.write(self, part))(self.name, data)

        def make(file: Any, mode: str, buffering: int, text: tuple[Any, ...], *others: Any) -> Any:
            raw = Raw(file, mode.replace("b", "").replace("t", ""), *others)
            if buffering == 0:
                return raw
            buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, *text)

        create = counted("create", make, lambda file, *_: not isinstance(file, int))

        def opened(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if mode[0] not in "wax":
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            return create(file, mode, buffering, (encoding, errors, newline), closefd, opener)

        return opened

    def _befall(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        way, number, count = self.fault.way, self.fault.number, len(self.names)
        if way in ("kill", "torn") and count == number:
            if way == "torn" and name in ("write", "pwrite"):
                data = memoryview(arguments[1])
                real(arguments[0], data[: len(data) // 2], *arguments[2:])
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "error" and count == number:
            self.last = name
            raise _error(errno.EIO, arguments[0])
        if way == "full" and count >= number and name in (*WRITES, "create", "mkdir", "fsync"):
            self.last = self.last or name
            raise _error(errno.ENOSPC, arguments[0])


def _shortened(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a write of a part, where this is a write of more than one byte."""
    place = {"write": 1, "pwrite": 1, "copy_file_range": 2, "sendfile": 3}.get(name)
    if place is None:
        return arguments
    given = arguments[place]
    less = max(1, given // 2) if isinstance(given, int) else memoryview(given).cast("B")[: max(1, len(given) // 2)]
    return (*arguments[:place], less, *arguments[place + 1 :])


def _error(code: int, place: Any) -> OSError:
    return OSError(code, os.strerror(code), *([os.fspath(place)] if isinstance(place, str | os.PathLike) else []))


def _child(words: Sequence[str], cwd: str, fault: Fault, notes: str) -> None:
    """Run a command in this process, under a fault; what it printed and did is noted in a folder."""
    os.chdir(cwd)
    from fedmr_merge.cli import main

    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    injector, real, limits = _Injector(fault), io.open, resource.getrlimit(resource.RLIMIT_FSIZE)
    if fault.way == "limit":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(fault.number), limits[1]))
    else:
        injector.install()
    code = 99
    try:
        main(list(words))
    except SystemExit as done:
        code = int(done.code or 0)
    except BaseException:  # noqa: BLE001 - it is reported
        sys.stderr.write(traceback.format_exc())
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    found = {
        "out": sys.stdout.getvalue(),
        "errors": sys.stderr.getvalue(),
        "failed": injector.last,
        "names": " ".join(injector.names),
    }
    injector.fault = Fault()
    for name, text in found.items():
        with real(Path(notes) / name, "w", encoding="utf-8") as stream:
            stream.write(text)
    os._exit(code)


@dataclass(frozen=True)
class Ran(Outcome):
    """How a command in a process of its own ended."""

    operations: tuple[str, ...] = ()
    failed: str = ""  #: the operation that failed


def forked(words: Sequence[object], cwd: Path, notes: Path, fault: Fault = Fault()) -> Ran:
    """Run a command in a process of its own; exit code None where it was killed or took too long."""
    notes.mkdir(exist_ok=True)
    names = ("out", "errors", "failed", "names")
    for name in names:
        (notes / name).unlink(missing_ok=True)
    process = _FORKS.Process(target=_child, args=([str(word) for word in words], str(cwd), fault, str(notes)))
    began = time.monotonic()
    process.start()
    process.join(fault.number if fault.way == "late" else LONGEST_SECONDS)
    if late := process.exitcode is None:
        process.kill()
        process.join()
    text = {name: (notes / name).read_text() if (notes / name).exists() else "" for name in names}
    if late and fault.way != "late":
        text["errors"] += f"took more than {LONGEST_SECONDS} seconds"
    code = process.exitcode if process.exitcode is not None and process.exitcode >= 0 else None
    return Ran(
        code, text["out"], text["errors"], time.monotonic() - began, tuple(text["names"].split()), text["failed"]
    )
