"""Paths that a person writes."""

from __future__ import annotations

import os.path
from pathlib import Path


def home_expanded(path: str) -> Path:
    """Return the path with `~` as the user's home folder, and `~name` as another user's.

    Where there is no such user, `~name` is a name like any other, as in a shell; `Path.expanduser` would raise.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


def local_path(path: str) -> Path:
    """Return the absolute path that an option names, from the current folder; `~` is the user's home folder."""
    return home_expanded(path).absolute()
