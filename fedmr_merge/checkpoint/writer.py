"""Write outputs that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from fedmr_merge.errors import OutputError, shown

_LOG = logging.getLogger(__name__)

#: The errors of the system where a disk, a quota or the largest size of a file is used up.
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: Called with the number of bytes just written.
Progress = Callable[[int], None]


@contextlib.contextmanager
def staged_output(target: str | Path) -> Iterator[Path]:
    """Give a path to write a file or a folder at; it becomes `target` when the block ends, and vanishes when the
    block fails.

    The path lies beside the target, on the same file system, so that the last step is one rename. Everything is
    flushed to the disk before it; where only the rename itself cannot be flushed, that is a warning. What a killed
    process left behind is removed the next time the same target is written.

    Raises OutputError when the target exists already or its folder cannot be written to.
    """
    target = Path(target)
    refuse_unwritable(target)
    with _staging_room(target) as room:
        try:
            staging = room / target.name
            yield staging
            _sync_tree(staging)
            refuse_existing(target)  # again: renaming would replace what another process has written meanwhile
            staging.rename(target)
        except OSError as error:
            reason = f"cannot be written: {error.strerror or error}"
            raise OutputError(target, reason, hint=_hint(error)) from error
        try:
            sync(target.parent)
        except OSError as error:  # the output is complete, and what is in it is on the disk
            _LOG.warning(
                "warning: %s is complete, but its folder could not be flushed to the disk: %s",
                shown(target),
                error.strerror,
            )


@contextlib.contextmanager
def _staging_room(target: Path) -> Iterator[Path]:
    """Make a folder beside the target, hold a lock on it while it is used, and remove it at the end."""
    room = target.parent / _staging_name(target)
    lock = None
    try:  # starts before the folder exists, so that Ctrl-C never leaves it behind
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(target)
            room.mkdir(mode=0o700)
            lock = _lock(room)
        except OSError as error:
            raise _unwritable(target, error) from error
        yield room
    finally:
        # A thread that Ctrl-C found while it started may still be at work, and could put a file into a folder that is
        # being removed; under another name it does not find the folder.
        with contextlib.suppress(OSError):
            room = room.rename(target.parent / _staging_name(target))
        shutil.rmtree(room, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def refuse_existing(target: Path) -> None:
    """Raise OutputError when an output exists already, since nothing is ever overwritten."""
    try:
        target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:  # the name is too long, its folder may not be entered
        raise _unwritable(target, error) from error
    raise OutputError(target, "exists already", hint="remove it or choose another place with -o")


def refuse_unwritable(target: Path, option: str = "-o") -> None:
    """Raise OutputError when an output exists already, or its folder cannot be made or written to.

    This is as much as can be found out without writing anything.
    """
    refuse_existing(target)
    folder = target.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(folder, os.W_OK | os.X_OK):
            code = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(code, os.strerror(code))
        with contextlib.suppress(FileNotFoundError):
            (folder / _staging_name(target)).lstat()  # it may be too long for a name
    except OSError as error:
        raise _unwritable(target, error, option) from error


def _unwritable(target: Path, error: OSError, option: str = "-o") -> OutputError:
    return OutputError(target, f"cannot be written: {error.strerror}", hint=f"choose another place with {option}")


def refuse_without_space(target: Path, nbytes: int) -> None:
    """Raise OutputError when the file system that an output would be on has not as many free bytes."""
    free = free_bytes(target)
    if nbytes > free:
        raise OutputError(
            target, f"needs {nbytes:,} bytes, {free:,} are free", hint="free some space or choose another place with -o"
        )


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system that a path is, or would be, on."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def remove_leftovers(target: Path) -> None:
    """Remove what processes that were killed while they wrote this target had staged."""
    for staged in target.parent.glob(f"{glob.escape(_staging_prefix(target))}*"):
        remove_leftover(staged)


def remove_leftover(staged: Path) -> None:
    """Remove a file or folder that a killed process had staged; a living process holds its lock."""
    import fcntl

    with contextlib.suppress(OSError):
        lock = os.open(staged, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(staged, ignore_errors=True) if staged.is_dir() else staged.unlink()
        finally:
            os.close(lock)


def _staging_prefix(target: Path) -> str:
    return f".{target.name}.staging-"


def _staging_name(target: Path) -> str:
    return f"{_staging_prefix(target)}{os.urandom(8).hex()}"


def _lock(room: Path) -> int:
    import fcntl

    descriptor = os.open(room, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _hint(error: OSError) -> str:
    return (
        f"{'free some space or ' if error.errno in NO_SPACE else ''}choose another place with -o; nothing was written"
    )


def _sync_tree(path: Path) -> None:
    if path.is_dir():
        for inner in path.iterdir():
            _sync_tree(inner)
    sync(path)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes | memoryview, position: int | None = None) -> None:
    """Write all of the content to an open file, at a position if one is given, however little each write takes."""
    view = memoryview(content).cast("B")
    while view:
        if position is None:
            count = os.write(descriptor, view)
        else:
            count = os.pwrite(descriptor, view, position)
            position += count
        view = view[count:]


def write_text(path: Path, text: str) -> None:
    """Write a text file, which ends up with all of the new content or keeps the old."""
    with replaced_file(path) as stream:
        stream.write(text)


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[TextIO]:
    """Give a stream to write a text file anew, as `replaced_path` does."""
    with replaced_path(path) as staged, staged.open("w", encoding="utf-8") as stream:
        yield stream


@contextlib.contextmanager
def replaced_path(path: Path) -> Iterator[Path]:
    """Give a path to write a file anew at; it is flushed and renamed over the old file when the block ends, and
    vanishes when the block fails. What killed processes left of it is removed.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    staged = path.parent / _staging_name(path)
    try:
        lock = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield staged
            sync(staged)
            staged.replace(path)
        finally:
            os.close(lock)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, completely or not at all."""
    with replaced_file(path) as stream:
        json.dump(content, stream, indent=1, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


#: Returns compact JSON on one line, for what a program reads.
dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
