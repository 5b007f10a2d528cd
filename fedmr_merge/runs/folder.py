"""Write the folder of a run: which process may write to it, and what was left there. `names.py` says what is in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import sys
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fedmr_merge
from fedmr_merge.checkpoint.writer import sync, write_json, write_text
from fedmr_merge.errors import RunError, RunInUseError
from fedmr_merge.runs.logs import cut_log, cut_to_round, damaged, read_log, read_object
from fedmr_merge.runs.names import (
    CHECKPOINTS,
    DEPLOYMENT,
    FIRST_FILES,
    LOCK,
    LOGS,
    RECIPE,
    REMOVED,
    REPLACED,
    is_of_a_run,
    is_staged,
)

_SHOWN = 3  # files that are not a run's
_PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "scikit-learn")


class RunFolder:
    """An opened run folder, locked against other processes until it is closed.

    What killed processes left half-written in it is removed: as long as the lock is held, none is at work on it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        self._opened_before = (path / LOCK).exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be a run folder: {error.strerror}", hint="choose another folder with --out", path=path
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise RunInUseError(
                f"{path}: another process is running here",
                hint="wait for it, or choose another folder with --out",
                path=path,
            ) from error

    def close(self) -> None:
        """Let other processes in. A folder in which no run has started goes away, and so do those made for it."""
        if self.is_new and [path.name for path in self.path.iterdir()] == [LOCK]:
            (self.path / LOCK).unlink()
            with contextlib.suppress(OSError):  # another run has begun beside it
                for folder in self._made:
                    folder.rmdir()
        os.close(self._lock)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / CHECKPOINTS

    @property
    def is_new(self) -> bool:
        """Whether no run has started here. One that was killed before its first round left nothing to resume."""
        return not (self.path / RECIPE).exists()

    def clean(self) -> None:
        """Bring the folder back to how the last process should have left it.

        Removes what a killed process left half-written; a run that was being replaced is put back, unless the new run
        had begun; of a run that was killed before it began nothing stays.

        Raises RunError when the folder is not new and not a run's.
        """
        replaced = self.path / REPLACED
        _remove(self.path / REMOVED)
        if (replaced / RECIPE).exists() and self.is_new:
            self._put_back()
        elif replaced.exists() and not (replaced / RECIPE).exists():
            self._put_back()  # killed while it was set aside
        if self.is_new:
            names = {path.name for path in self.path.iterdir()}
            ours = {name for name in names if name in FIRST_FILES or is_staged(name)}
            # Version 0.1.0 could leave such a file alone, without the lock; a folder that was replaced is kept.
            alone = all(is_staged(name) and not name.endswith("-old") for name in names - {LOCK})
            if names - ours or not (self._opened_before or alone):
                if not self._opened_before:  # else the next process would take the files for a run's, and remove them
                    (self.path / LOCK).unlink(missing_ok=True)
                raise RunError(
                    f"{self.path}: is not empty and not a run folder",
                    hint="choose another folder with --out",
                    path=self.path,
                )
            for name in names - {LOCK}:
                _remove(self.path / name)
            return
        for path in list(self.path.iterdir()):
            # A folder that is being exchanged for a new one is put back by the stage that publishes it.
            if is_staged(path.name) and not path.name.endswith("-old"):
                _remove(path)
        self.forget()
        for path in self.checkpoints.glob(".*"):
            _remove(path)

    def refuse_others(self) -> None:
        """Raise RunError when the folder holds what no run writes: it must not be removed with the run."""
        if others := sorted(path.name for path in self.path.iterdir() if not is_of_a_run(path.name)):
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            raise RunError(
                f"{self.path}: holds what no run writes: {', '.join(others[:_SHOWN])}{more}",
                hint="move it elsewhere, or choose another folder with --out",
                path=self.path,
            )

    def set_aside(self) -> None:
        """Make room for a new run. The old one stays in `.replaced` until `forget` is called.

        The recipe is moved last: a kill before that leaves a folder that `clean` puts back whole.
        """
        (self.path / REPLACED).mkdir(exist_ok=True)
        entries = [path for path in self.path.iterdir() if path.name not in (LOCK, REPLACED)]
        for path in sorted(entries, key=lambda path: path.name == RECIPE):
            path.rename(self.path / REPLACED / path.name)

    def forget(self) -> None:
        """Remove the run that was set aside."""
        if (self.path / REPLACED).exists():
            (self.path / REPLACED).rename(self.path / REMOVED)  # at once, so that no half of it is ever put back
            _remove(self.path / REMOVED)

    def _put_back(self) -> None:
        replaced = self.path / REPLACED
        for path in sorted(replaced.iterdir(), key=lambda path: path.name == RECIPE):
            _remove(self.path / path.name)
            path.rename(self.path / path.name)
        replaced.rmdir()

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, complete or not at all."""
        write_text(self.path / name, text)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file of a run that has begun. Raises RunError when it is damaged or absent."""
        content = read_object(self.path, name)
        if content is None:
            raise damaged(self.path / name, "it is missing")
        return content

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file, complete or not at all."""
        write_json(self.path / name, content)

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Add a line to a log."""
        with (self.path / name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")

    def read_log(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a log; a last line that was cut off is left out. Raises RunError for a damaged one."""
        return read_log(self.path, name)

    def cut_logs(self, rounds: int) -> None:
        """Drop what the logs hold after so many rounds: those that no checkpoint vouches for are run again."""
        for name in LOGS:
            cut_log(self.path, name, rounds)
        cut_to_round(self.path, DEPLOYMENT, rounds)

    def sync_logs(self) -> None:
        """Flush the logs and their names to the disk, so that no checkpoint vouches for a round that they may lose."""
        for name in LOGS:
            sync(self.path / name)
        sync(self.path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def describe_environment(device: torch.device, packages: Collection[str] = ()) -> dict[str, Any]:
    """Return what a run's numbers depend on besides its recipe, with the versions of these packages and of its own.

    There is no name of a machine or a user in it.
    """
    return {
        "fedmr_merge": fedmr_merge.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "packages": {name: metadata.version(name) for name in (*_PACKAGES, *sorted(packages))},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
