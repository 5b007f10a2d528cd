"""Claims on the runs of a sweep: which process works on which run, on one machine or on many that share a folder.

A claim is a file that its owner touches again and again. One that was not touched for a while belongs to a process or
a machine that has stopped: the next process that looks takes it over.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from pathlib import Path

TOUCH_EVERY_SECONDS = 20.0
EXPIRES_AFTER_SECONDS = 180.0  #: a shared folder may show the time of a file a minute late


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
        self._held: set[str] = set()
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
        with self._lock:
            if name in self._held:
                return True
            if self._create(path) or (self._is_left_behind(path) and self._take_over(path)):
                self._held.add(name)
                return True
            return False

    def release(self, name: str) -> None:
        """Give a claim back."""
        with self._lock:
            self._held.discard(name)
            path = self._path(name)
            if self._owner_of(path) == self._owner:
                path.unlink(missing_ok=True)

    def is_taken(self, name: str) -> bool:
        """Whether a live process, this one included, has claimed the run."""
        path = self._path(name)
        return path.exists() and not self._is_left_behind(path)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.claim"

    def _create(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(self._owner)
        return True

    def _take_over(self, path: Path) -> bool:
        """Move the dead process's claim away, which only one of several can do, and make one of this process's own."""
        away = path.with_name(f".{path.name}.{self._owner}")
        try:
            path.rename(away)
        except FileNotFoundError:
            return False
        if not self._is_left_behind(away):  # somebody else took it over in between: theirs is moved back
            with contextlib.suppress(FileExistsError):
                os.link(away, path)
            away.unlink()
            return False
        away.unlink()
        return self._create(path)

    def _is_left_behind(self, path: Path) -> bool:
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

    def _owner_of(self, path: Path) -> str | None:
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _keep_alive(self) -> None:
        while not self._closed.wait(self._every):
            with self._lock:
                for path in map(self._path, self._held):
                    if (
                        self._owner_of(path) == self._owner
                    ):  # not one that was taken over while this process stood still
                        with contextlib.suppress(FileNotFoundError):
                            os.utime(path)
