"""Write outputs that appear complete or not at all, and copy bytes in the kernel."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmr_merge.errors import CheckpointError, OutputError

_CHUNK_BYTES = 1 << 20
_PIECE_BYTES = 64 << 20  # between two reports of progress
_MAX_OPEN = 64  # a store can have more shards than a process may have open files
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.ETXTBSY}

#: Called with the number of bytes just written.
Progress = Callable[[int], None]


@contextlib.contextmanager
def staged_output(target: str | Path) -> Iterator[Path]:
    """Give a path to write a file or a folder at; it becomes `target` when the block ends, and vanishes when the
    block fails.

    The path lies beside the target, on the same file system, so that the last step is one rename. Everything is
    flushed to the disk before it. What a killed process left behind is removed the next time the same target is
    written.

    Raises OutputError when the target exists already or its folder cannot be written to.
    """
    target = Path(target)
    refuse_existing(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        room = Path(tempfile.mkdtemp(prefix=_staging_prefix(target), dir=target.parent))
    except OSError as error:
        raise OutputError(
            target, f"cannot be written: {error.strerror}", hint="choose another place with -o"
        ) from error
    lock = _lock(room)
    try:
        staging = room / target.name
        yield staging
        _sync_tree(staging)
        refuse_existing(target)
        staging.rename(target)
        sync(target.parent)
    except OSError as error:
        raise OutputError(target, f"cannot be written: {error.strerror or error}", hint=_space_hint(error)) from error
    finally:
        shutil.rmtree(room, ignore_errors=True)
        os.close(lock)


def refuse_existing(target: Path) -> None:
    """Raise OutputError when an output exists already: nothing is ever overwritten."""
    if target.exists() or target.is_symlink():
        raise OutputError(target, "exists already", hint="remove it or choose another place with -o")


def remove_leftovers(target: Path) -> None:
    """Remove the staging folders of processes that were killed while they wrote this target."""
    import fcntl

    for room in target.parent.glob(f"{_staging_prefix(target)}*"):
        with contextlib.suppress(OSError):
            lock = os.open(room, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a living process holds it
                shutil.rmtree(room, ignore_errors=True)
            finally:
                os.close(lock)


def _staging_prefix(target: Path) -> str:
    return f".{target.name}.staging-"


def _lock(room: Path) -> int:
    import fcntl

    descriptor = os.open(room, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _space_hint(error: OSError) -> str | None:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "free some space or choose another place with -o; nothing was written" if full else None


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


def write_text(path: Path, text: str) -> None:
    """Write a text file that is complete or keeps its old content: a temporary file, flushed, renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people can read, complete or not at all."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of bytes of a source file."""

    path: Path
    start: int
    end: int


def assemble(
    target: Path,
    header: bytes,
    segments: Iterable[Segment],
    watch: SourceWatch,
    progress: Progress | None = None,
) -> None:
    """Write `header` and then the bytes of the segments, in order, copied by the kernel."""
    with target.open("xb", buffering=0) as stream, contextlib.ExitStack() as stack:
        _write_all(stream.fileno(), header)
        sources: dict[Path, int] = {}
        for piece in _pieces(_merge_adjacent(segments)):
            if piece.path not in sources:
                if len(sources) >= _MAX_OPEN:
                    stack.pop_all().close()
                    sources.clear()
                sources[piece.path] = watch.open(piece.path)
                stack.callback(os.close, sources[piece.path])
            _copy_range(sources[piece.path], stream.fileno(), piece)
            if progress:
                progress(piece.end - piece.start)


def _merge_adjacent(segments: Iterable[Segment]) -> Iterator[Segment]:
    last: Segment | None = None
    for segment in segments:
        if last is not None and segment.path == last.path and segment.start == last.end:
            last = Segment(last.path, last.start, segment.end)
            continue
        if last is not None:
            yield last
        last = segment
    if last is not None:
        yield last


def _pieces(segments: Iterable[Segment]) -> Iterator[Segment]:
    for segment in segments:
        for start in range(segment.start, segment.end, _PIECE_BYTES):
            yield Segment(segment.path, start, min(start + _PIECE_BYTES, segment.end))


def _write_all(descriptor: int, content: bytes | memoryview) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _copy_range(source: int, target: int, piece: Segment) -> None:
    """Append a source's bytes to the target: copy_file_range, else sendfile, else through a bounded buffer."""
    position = piece.start
    for copy in (_copy_file_range, _sendfile, _read_write):
        try:
            while position < piece.end:
                copied = copy(source, target, position, piece.end - position)
                if copied == 0:
                    raise CheckpointError(piece.path, f"truncated while it was read: it ends before byte {piece.end}")
                position += copied
            return
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise


def _copy_file_range(source: int, target: int, start: int, count: int) -> int:
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, "no copy_file_range on this platform")
    return os.copy_file_range(source, target, count, offset_src=start)


def _sendfile(source: int, target: int, start: int, count: int) -> int:
    return os.sendfile(target, source, start, count)


def _read_write(source: int, target: int, start: int, count: int) -> int:
    content = os.pread(source, min(count, _CHUNK_BYTES), start)
    _write_all(target, content)
    return len(content)


class SourceWatch:
    """Remembers what the source files were when they were first opened: one that changes while it is read is an error.

    May be shared between threads.
    """

    def __init__(self) -> None:
        self._first: dict[Path, tuple[int, int]] = {}

    def open(self, path: Path) -> int:
        """Return a file descriptor for reading, which the caller closes.

        Raises CheckpointError when the file cannot be opened.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
        self._first.setdefault(path, _identity(os.fstat(descriptor)))
        return descriptor

    def check(self) -> None:
        """Raise CheckpointError when a file is not what it was when it was first opened."""
        for path, before in self._first.items():
            try:
                unchanged = _identity(path.stat()) == before
            except OSError:
                unchanged = False
            if not unchanged:
                raise CheckpointError(
                    path, "changed while it was read", hint="wait until it is written, then try again"
                )


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
