"""No process and no folder outlives the supervisor's parent, however that one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmr_merge.flower import supervisor as supervising
from fedmr_merge.flower.rehearsal import Supervisor

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")

FAMILY = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:], start_new_session=True); time.sleep(600)"


def processes_with(word: str) -> list[int]:
    """Return the processes that have a word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_until(condition, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def start_family(supervisor: Supervisor, folder: Path, word: str) -> int:
    """Start a process that starts another one in a session of its own."""
    command = [sys.executable, "-c", FAMILY, sys.executable, "-c", "import time; time.sleep(600)", word]
    return supervisor.start(command, os.environ, folder / "log")


def test_closing_ends_everything_that_was_started_and_removes_the_folder(tmp_path):
    folder, word = tmp_path / "rehearsal", f"word-{os.getpid()}-closing"
    folder.mkdir()
    supervisor = Supervisor(folder)
    pid = start_family(supervisor, folder, word)
    assert wait_until(lambda: len(processes_with(word)) == 2)
    assert supervisor.exit_code(pid) is None
    assert {pid, *processes_with(word)} <= set(supervising._descendants(os.getpid()))
    supervisor.kill(pid)  # its child is an orphan now
    assert supervisor.exit_code(pid) == -signal.SIGKILL
    start_family(supervisor, folder, word)
    assert wait_until(lambda: len(processes_with(word)) == 3)
    supervisor.close()
    assert processes_with(word) == []
    assert not folder.exists()


def test_a_tree_is_killed_with_its_root(tmp_path):
    word = f"word-{os.getpid()}-tree"
    supervisor = Supervisor(tmp_path / "rehearsal")
    (tmp_path / "rehearsal").mkdir()
    pid = start_family(supervisor, tmp_path, word)
    assert wait_until(lambda: len(processes_with(word)) == 2)
    supervisor.kill(pid, tree=True)
    assert wait_until(lambda: processes_with(word) == [])
    supervisor.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_parent_that_is_killed(tmp_path, end):
    folder, word = tmp_path / "rehearsal", f"word-{os.getpid()}-{end.name}"
    folder.mkdir()
    program = (
        "import os, sys, time; from pathlib import Path; from fedmr_merge.flower.rehearsal import Supervisor; "
        f"s = Supervisor(Path({str(folder)!r})); "
        f"s.start([sys.executable, '-c', {FAMILY!r}, sys.executable, '-c', 'import time; time.sleep(600)', {word!r}], "
        f"os.environ, Path({str(folder)!r}) / 'log'); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    assert wait_until(lambda: len(processes_with(word)) >= 3)  # the parent, and two that were started
    parent.send_signal(end)
    parent.wait()
    assert wait_until(lambda: not processes_with(word) and not processes_with(str(folder)))
    assert wait_until(lambda: not folder.exists())
