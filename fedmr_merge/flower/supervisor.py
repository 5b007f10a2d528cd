"""A process that starts the others of a rehearsal, and ends every one of them when its own parent is gone.

The parent writes requests to its standard input, one JSON object a line, and reads one answer for each. When the input
ends, because the parent closed it or was killed, all processes that were started are killed, with those that they
started themselves, and the folder of the rehearsal is removed.

Run it as `python -m fedmr_merge.flower.supervisor FOLDER`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LINUX = sys.platform.startswith("linux")
_LONGEST_END_SECONDS = 20.0


def main(folder: Path) -> None:
    """Answer requests until the input ends; then leave nothing behind."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends with its parent, and never before it
    if _LINUX:  # what loses its own parent becomes a child of this process
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    started: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for line in sys.stdin:
            print(json.dumps(_answer(json.loads(line), started)), flush=True)  # noqa: T201 - to the parent
    except (BrokenPipeError, ValueError):  # the parent died while it was answered, or while it wrote
        pass
    finally:
        _end_all(started)
        shutil.rmtree(folder, ignore_errors=True)


def _answer(request: dict[str, Any], started: dict[int, subprocess.Popen[bytes]]) -> dict[str, Any]:
    if "start" in request:
        with Path(request["log"]).open("ab") as log:
            process = subprocess.Popen(
                request["start"],
                env=request["environment"],
                cwd=request["folder"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        started[process.pid] = process
        return {"pid": process.pid}
    process = started[request["of"]]
    if "kill" in request:
        for pid in _descendants(process.pid) if request["kill"] == "tree" else ():
            _kill(pid)
        process.kill()
        process.wait()
    return {"code": process.poll()}


def _end_all(started: dict[int, subprocess.Popen[bytes]]) -> None:
    """Kill every process that descends from this one, until there is none."""
    deadline = time.monotonic() + _LONGEST_END_SECONDS
    while time.monotonic() < deadline:
        for process in started.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        left = _descendants(os.getpid())
        for pid in left:
            _kill(pid)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not _descendants(os.getpid()):
            return
        time.sleep(0.02)


def _descendants(root: int) -> list[int]:
    """Return the processes that a process started, and those that they started; none where there is no `/proc`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            after_name = entry.read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(after_name[1]), []).append(int(entry.parent.name))
    found, waiting = list[int](), [root]
    while waiting:
        inner = children.get(waiting.pop(), [])
        found += inner
        waiting += inner
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _die_with_parent() -> None:
    if _LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
