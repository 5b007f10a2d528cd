"""Claims on the runs of a sweep: which process works on which run, on one machine or on many that share a folder.

A claim is a file that its owner touches again and again, and keeps locked. One that was not touched for a while belongs
to a process or a machine that has stopped: the next process that looks takes it over. On the owner's own machine nobody
has to wait so long, because the system takes the lock from a process that ends, however it ends; what another machine
sees of a lock depends on the file system, so that it is not asked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

TOUCH_EVERY_SECONDS = 20.0
EXPIRES_AFTER_SECONDS = 180.0  #: a shared folder may show the time of a file a minute late
_MOST_BYTES = 1000  # of a claim


class Claims:
    """The claims of one process in a shared folder. Use as a context manager: it keeps them alive and gives them back.

    Args:
        folder: Where the claims of all processes lie.
        expires_after_seconds: The age at which a claim counts as left behind.
        touch_every_seconds: How often the claims that are held are renewed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        expires_after_seconds: float = EXPIRES_AFTER_SECONDS,
        touch_every_seconds: float = TOUCH_EVERY_SECONDS,
    ) -> None:
        self._folder = folder
        self._expires, self._every = expires_after_seconds, touch_every_seconds
        self._owner = uuid.uuid4().hex
        self._held: dict[str, int] = {}  # run → the descriptor of its claim, by which it is locked
        self._seen: dict[str, float] = {}  # run → the time of its claim when this process first looked
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="claims", daemon=True)

    def __enter__(self) -> Claims:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> bool:
        """Claim a run. Returns whether it is this process's now; it is not while another process works on it."""
        path = self._path(name)
        with self._lock, self._one_at_a_time():
            if name not in self._held:
                descriptor = self._create(path)
                if descriptor is None and self._is_left_behind(path):
                    descriptor = self._take_over(path)
                if descriptor is None:
                    return False
                self._held[name] = descriptor
            return True

    def release(self, name: str) -> None:
        """Give a claim back."""
        with self._lock:
            path = self._path(name)
            if _owner_of(path) == self._owner:
                path.unlink(missing_ok=True)
            if name in self._held:
                os.close(self._held.pop(name))

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Keep other processes from taking claims meanwhile: one that takes a claim over moves it away for a moment, in
        which another could make one of its own.
        """
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # there are file systems without locks
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def is_alive(self, name: str) -> bool:
        """Whether a process that is at work, this one included, has claimed the run.

        One on another machine is known to be at work when it has renewed its claim since this process first looked.
        """
        path = self._path(name)
        try:
            renewed = path.stat().st_mtime
        except FileNotFoundError:
            return False
        if self._is_left_behind(path):
            return False
        return _is_locked(path) is True or renewed != self._seen.setdefault(name, renewed)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.claim"

    def _create(self, path: Path) -> int | None:
        """Write and lock a claim, and return its descriptor; None where there is one already."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return None
        lines = [self._owner]
        with contextlib.suppress(OSError):  # there are file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lines.append(_this_machine())
        # Only now: whoever reads of this machine in it finds it locked.
        os.write(descriptor, "\n".join(lines).encode())
        return descriptor

    def _take_over(self, path: Path) -> int | None:
        """Move the dead process's claim away, which only one of several can do, and make one of this process's own."""
        away = path.with_name(f".{path.name}.{self._owner}")
        try:
            path.rename(away)
        except FileNotFoundError:
            return None
        if not self._is_left_behind(away):  # somebody else took it over in between: theirs is moved back
            with contextlib.suppress(FileExistsError):
                os.link(away, path)
            away.unlink()
            return None
        away.unlink()
        return self._create(path)

    def _is_left_behind(self, path: Path) -> bool:
        if _is_locked(path) is False:
            return True
        try:
            return self._now() - path.stat().st_mtime > self._expires
        except FileNotFoundError:
            return False

    def _now(self) -> float:
        """Return the time of the folder's file system, which is the clock that the claims are dated by."""
        clock = self._folder / f".clock.{self._owner}.{threading.get_ident()}"
        clock.touch()
        found = clock.stat().st_mtime
        clock.unlink()
        return found

    def _keep_alive(self) -> None:
        while not self._closed.wait(self._every):
            with self._lock:
                for path in map(self._path, self._held):
                    if _owner_of(path) == self._owner:  # not one that was taken over while this process stood still
                        with contextlib.suppress(FileNotFoundError):
                            os.utime(path)


def _this_machine() -> str:
    """Return what no other machine is called, and this one no more when it was started anew."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        started = str(uuid.getnode())
    return f"{started} {platform.node()}"


def _owner_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except FileNotFoundError:
        return None


def _is_locked(path: Path) -> bool | None:
    """Whether a process of this machine keeps a claim locked; False where it has ended, None for another machine's."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        if os.read(descriptor, _MOST_BYTES).decode(errors="replace").partition("\n")[2] != _this_machine():
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other's
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False
