"""Copy bytes of source files into a target, in the kernel or through a small buffer in which they are hashed."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedmr_merge.checkpoint.header import FileIdentity, file_identity, reading, unreadable
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.writer import NO_SPACE, Progress, write_all
from fedmr_merge.cores import usable_cores
from fedmr_merge.errors import CheckpointError

#: This fits a core's own cache, so that a byte is hashed and written from there after it was read.
BUFFER_BYTES = 1 << 18
_PIECE_BYTES = 64 << 20  # between two reports of progress
_MAX_OPEN = 64  # of one thread: a store can have more shards than a process may have open files


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
    """Write a header and then the bytes of the segments, in order, copied by the kernel."""
    with target.open("xb", buffering=0) as stream, OpenFiles(watch) as sources:
        write_all(stream.fileno(), header)
        for piece in _pieces(_merge_adjacent(segments)):
            _copy_range(sources.descriptor(piece.path), stream.fileno(), piece)
            if progress:
                progress(piece.end - piece.start)


def copy_file(source: Path, target: Path, watch: SourceWatch) -> None:
    """Write a copy of a file, whatever its size. Raises CheckpointError when the source cannot be read."""
    with reading(source):
        nbytes = source.stat().st_size
    assemble(target, b"", [Segment(source, 0, nbytes)], watch)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name; copy it where the file system has no links, or is another one. No link is followed."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target, follow_symlinks=False)


def assemble_hashed(
    target: Path,
    header: bytes,
    segments: Iterable[Segment],
    watch: SourceWatch,
    progress: Progress | None = None,
) -> bytearray:
    """Write a header and then the bytes of the segments, in order, and return the SHA-256 of each segment.

    The digests have 32 bytes each and follow one another. Every byte is read, hashed and written while it is in the
    cache, which costs less than copying it in the kernel and reading it again.
    """
    digests = bytearray()
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with target.open("xb", buffering=0) as stream, OpenFiles(watch) as sources:
        write_all(stream.fileno(), header)
        for segment in segments:
            digest = hashlib.sha256()
            source = sources.descriptor(segment.path)
            for piece in read_range(segment.path, source, segment.start, segment.end, buffer):
                digest.update(piece)
                write_all(stream.fileno(), piece)
            digests += digest.digest()
            if progress:
                progress(segment.end - segment.start)
    return digests


def read_range(path: Path, descriptor: int, start: int, end: int, buffer: memoryview) -> Iterator[memoryview]:
    """Yield a file's bytes from `start` to `end`, one full buffer after the other.

    Raises CheckpointError when the file ends before that or cannot be read.
    """
    while start < end:
        piece = buffer[: end - start]
        read_exactly(path, descriptor, start, piece)
        yield piece
        start += len(piece)


def read_exactly(path: Path, descriptor: int, start: int, out: memoryview) -> None:
    """Fill `out` with the bytes of an open file from `start` on, however little each read gives.

    Raises CheckpointError when the file ends before that or cannot be read.
    """
    end = start + len(out)
    while start < end:
        try:  # not `reading`, which would take longer than a small tensor
            count = os.preadv(descriptor, [out[start - end :]], start)
        except OSError as error:
            raise unreadable(path, error) from error
        if count == 0:
            raise CheckpointError(path, f"truncated while it was read: it ends before byte {end}")
        start += count


class OpenFiles:
    """The most recently used source files of one thread, kept open; few enough to leave room for the other threads."""

    def __init__(self, watch: SourceWatch) -> None:
        self._watch = watch
        self._open: dict[Path, int] = {}  # in the order of their last use
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        share = allowed // 2 // usable_cores()
        self._limit = _MAX_OPEN if allowed == resource.RLIM_INFINITY else max(1, min(_MAX_OPEN, share))

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def descriptor(self, path: Path) -> int:
        """Return a file's descriptor, which stays open until the next one is requested."""
        descriptor = self._open.pop(path, None)
        if descriptor is None:
            if len(self._open) >= self._limit:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = self._watch.open(path)
        self._open[path] = descriptor
        return descriptor


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


def _copy_range(source: int, target: int, piece: Segment) -> None:
    """Append a source's bytes to the target: copy_file_range, else sendfile, else through a bounded buffer.

    The kernel does not copy between all files, and each system refuses with errors of its own. Where a disk fails, it
    does not say which of the two files is at fault; reading and writing does.
    """
    position = piece.start
    for copy in (_copy_file_range, _sendfile):
        try:
            while position < piece.end and (copied := copy(source, target, position, piece.end - position)):
                position += copied
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
    if position < piece.end:
        buffer = memoryview(bytearray(min(BUFFER_BYTES, piece.end - position)))
        for content in read_range(piece.path, source, position, piece.end, buffer):
            write_all(target, content)


def _copy_file_range(source: int, target: int, start: int, count: int) -> int:
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, "no copy_file_range on this platform")
    return os.copy_file_range(source, target, count, offset_src=start)


def _sendfile(source: int, target: int, start: int, count: int) -> int:
    return os.sendfile(target, source, start, count)


class SourceWatch:
    """Checks that source files are still what they were when their headers were read.

    A watch may be shared between threads.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint]) -> None:
        self._before = {file.path: file.header.identity for c in checkpoints for file in c.files}

    def open(self, path: Path) -> int:
        """Return a file descriptor for reading, which the caller closes.

        Raises CheckpointError when the file cannot be opened or has changed.
        """
        with reading(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._compare(path, file_identity(os.fstat(descriptor)))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def check(self) -> None:
        """Raise CheckpointError when a file has changed since its header was read."""
        for path in self._before:
            try:
                now = file_identity(path.stat())
            except OSError:
                now = None
            self._compare(path, now)

    def _compare(self, path: Path, now: FileIdentity | None) -> None:
        if self._before.get(path, now) != now:
            raise CheckpointError(path, "changed while it was read", hint="wait until it is written, then try again")
