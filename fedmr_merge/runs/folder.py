"""Write the folder of a run: who may write to it, and whether it belongs to a recipe. `names.py` says what is in it."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fedmr_merge
from fedmr_merge.checkpoint.writer import remove_leftovers, write_json, write_text
from fedmr_merge.errors import RunError
from fedmr_merge.runs.logs import read_log, read_object
from fedmr_merge.runs.names import CHECKPOINTS, FIRST_FILES, GLOBAL, LOCK, RECIPE, is_of_a_run

_SHOWN = 3  # files that are not a run's
_PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "scikit-learn")


class RunFolder:
    """An opened run folder, locked against other processes until it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be a run folder: {error.strerror}", hint="choose another folder with --out"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise RunError(
                f"{path}: another process is running here", hint="wait for it, or choose another folder with --out"
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
        """Whether no run has started here. One that ended before its first round left nothing to go on from."""
        return not (self.path / RECIPE).exists()

    def check(self, recipe: str, *, fresh: bool = False) -> None:
        """Check that a run of this resolved recipe, as YAML, may be here, or with `fresh` replace the one that is here.

        Raises RunError when the folder is another recipe's, with the difference, or holds what no run writes.
        """
        if self.is_new:
            if any(path.name not in FIRST_FILES for path in self.path.iterdir()):
                raise RunError(f"{self.path}: is not empty and no run folder", hint="choose another folder with --out")
            return
        if fresh:
            self._refuse_others()
            return
        before, text = (self.path / RECIPE).read_text(encoding="utf-8"), recipe
        if before != text:
            lines = difflib.unified_diff(before.splitlines(), text.splitlines(), lineterm="", n=0)
            changed = ", ".join(
                line[0] + line[1:].strip() for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")
            )
            raise RunError(
                f"{self.path}: belongs to another recipe; the difference is: {changed}",
                hint="choose another folder with --out, or --fresh to remove the old run",
            )

    def _refuse_others(self) -> None:
        if others := sorted(path.name for path in self.path.iterdir() if not is_of_a_run(path.name)):
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            raise RunError(
                f"{self.path}: holds what no run writes: {', '.join(others[:_SHOWN])}{more}",
                hint="move it elsewhere, or choose another folder with --out",
            )

    def clear(self) -> None:
        """Remove the run."""
        # The recipe last: cut off before, this is still a run folder, that can be cleared.
        for path in sorted(self.path.iterdir(), key=lambda path: path.name == RECIPE):
            if path.name == LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, complete or not at all."""
        write_text(self.path / name, text)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file, None where there is none. Raises RunError when it is damaged."""
        return read_object(self.path, name)

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

    def cut_log(self, name: str, last_round: int) -> None:
        """Drop the lines of rounds after `last_round`: rounds whose checkpoint did not get written are run again."""
        kept = [line for line in self.read_log(name) if line["round"] <= last_round]
        write_text(self.path / name, "".join(json.dumps(line) + "\n" for line in kept))

    def remove_leftovers(self) -> None:
        """Remove what a killed process left half-written."""
        if self.checkpoints.is_dir():
            for path in self.checkpoints.glob(".*.staging-*"):
                remove_leftovers(self.checkpoints / path.name[1:].partition(".staging-")[0])
        remove_leftovers(self.path / GLOBAL)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return what a run's numbers depend on besides its recipe. No name of a machine or a user."""
    return {
        "fedmr_merge": fedmr_merge.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
