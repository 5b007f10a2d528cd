"""Attempts: a command in this process, bounded in time and memory, and what may not come of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmr_merge.cli import main

#: Attempts of each kind; `FEDMR_MERGE_TORTURE=100` makes it 100, `FEDMR_MERGE_TORTURE=100:250` those from number 100 to
#: 249, a part of them, and `FEDMR_MERGE_TORTURE=@417` repeats number 417 alone.
WANTED = os.environ.get("FEDMR_MERGE_TORTURE", "1000")
#: A folder for the figures, a file for each part of each kind; `benchmarks/reliability.py` makes the tables of them.
RESULTS = os.environ.get("FEDMR_MERGE_TORTURE_RESULTS")
BATCHES = 4  #: of one kind, for so many processes
CPU_SECONDS, WALL_SECONDS = 10, 120
MEMORY_BYTES = 2 << 30  #: beyond what the process holds when the attempt begins
LONGEST_ERRORS = 6000  #: characters
#: Where a message of the last resort is shown, no one thought of what was met.
LAST_RESORTS = ("--debug shows where it was met", "out of memory", "Traceback", "what was read is nested too deeply")


class TookTooLong(BaseException):
    """Raised by a timer in the middle of an attempt."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int | None  #: None where it raised what no command may raise
    out: str
    errors: str
    seconds: float

    @property
    def fault(self) -> str | None:
        """What is wrong with this end, whatever the command was; None if nothing is."""
        if self.code not in (0, 2, 3):
            return f"ended with {self.code}: {self.errors[-1500:]}"
        if found := [text for text in LAST_RESORTS if text in self.errors]:
            return f"a message of the last resort ({found[0]}): {self.errors[-600:]}"
        if self.code and not any(line.startswith("error: ") for line in self.errors.splitlines()):
            return f"exit code {self.code} without an error: {self.errors[-600:]!r}"
        if len(self.errors) > LONGEST_ERRORS:
            return f"{len(self.errors)} characters of errors: {self.errors[:300]!r}"
        if control := [char for char in self.out + self.errors if ord(char) < 32 and char not in "\n\t\r"]:
            return f"control characters {control[:5]} are printed: {self.errors[-600:]!r}"
        return None


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Within the block this process has so much time and memory."""

    def stop(number: int, _: object) -> None:
        raise TookTooLong(signal.Signals(number).name)

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY if hard < 0 else hard, hard))
        for number, handler in before.items():
            signal.signal(number, handler)


def attempt(arguments: Sequence[object]) -> Outcome:
    """Run a command."""
    out, errors, code = io.StringIO(), io.StringIO(), None
    start = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            with bounded():
                main(list(map(str, arguments)))
        except SystemExit as done:
            code = int(done.code or 0)
        except BaseException:  # noqa: BLE001 - it is reported
            errors.write(traceback.format_exc())
    return Outcome(code, out.getvalue(), errors.getvalue(), time.process_time() - start)


def numbers(batch: int = 0, batches: int = 1, share: int = 1) -> range:
    """Return the attempts of one batch; one of every `share` of those that are wanted."""
    if WANTED.startswith("@"):
        return range(int(WANTED[1:]), int(WANTED[1:]) + (batch == 0))
    first, colon, last = WANTED.rpartition(":")
    start, stop = (-(-int(end) // share) for end in (first if colon else "0", last))
    return range(start + batch, stop, batches)


def torture(section: str, kind: str, wanted: range, one: Callable[..., str | Outcome]) -> None:
    """Make attempts. `one` is given a source of randomness; it returns an outcome, or a fault."""
    accepted = refused = 0
    slowest, faults, start = 0.0, [], _processor_seconds()
    for number in wanted:
        try:
            found = one(random.Random(f"{kind}:{number}"))
        except Exception:  # noqa: BLE001 - what the output is could not even be looked at
            found = traceback.format_exc()
        fault = found if isinstance(found, str) else found.fault
        if fault is not None:
            faults.append(f"{kind} @{number}: {fault[-3000:]}")
        elif isinstance(found, Outcome):
            accepted += found.code == 0
            refused += found.code != 0
            slowest = max(slowest, found.seconds)
    if RESULTS:
        figures = {
            "section": section,
            "kind": kind,
            "numbers": list(wanted),
            "accepted": accepted,
            "refused": refused,
            "failures": [fault[:300] for fault in faults],
            "slowest_seconds": round(slowest, 3),
            "processor_seconds": round(_processor_seconds() - start, 1),
        }
        name = f"{section}-{kind}-{wanted.start}-{wanted.stop}-{wanted.step}".replace(" ", "_").replace(":", "")
        Path(RESULTS).mkdir(parents=True, exist_ok=True)
        (Path(RESULTS) / f"{name}.json").write_text(json.dumps(figures), encoding="utf-8")
    assert not faults, f"{len(faults)} failures\n" + "\n".join(faults[:20])


def _processor_seconds() -> float:
    """Return the time of the processor that this process, its children and theirs have taken, if they have ended."""
    found = sum(resource.getrusage(who)[field] for who in (0, resource.RUSAGE_CHILDREN) for field in (0, 1))
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():  # the server of forks
        stat = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        found += sum(map(int, stat[11:15])) / os.sysconf("SC_CLK_TCK")
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Return every entry of a folder, and the bytes of its files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def difference(before: dict[str, bytes], after: dict[str, bytes]) -> str | None:
    """Say what became of a folder that had to stay as it was."""
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    return f"changed, made or removed: {', '.join(sorted(changed)[:10])}" if changed else None
