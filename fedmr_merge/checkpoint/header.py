"""Read, check and write the header of a safetensors file.

A safetensors file is an 8-byte little-endian length, that many bytes of JSON, and the tensors' bytes back to back.
The JSON maps each tensor's name to its dtype, its shape and its byte range in what follows it, and `__metadata__` to
a map of strings.

Whatever is accepted here, the `safetensors` package accepts too. This module also refuses what could be dropped or
read in two ways: a name that appears twice (the package keeps the last), unknown keys of an entry, and entries and
dtypes that are written as another kind of JSON value than every writer uses.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from stat import S_ISREG
from typing import Any, NoReturn

from fedmr_merge.checkpoint.header_json import check_bounds, members, read_entry, read_metadata
from fedmr_merge.checkpoint.tensor_table import Signature, TensorTable
from fedmr_merge.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  #: the `safetensors` package's own limit

_LENGTH = struct.Struct("<Q")


#: Inode, size and time of the last change: a file in which all three are the same has not changed.
FileIdentity = tuple[int, int, int]


def file_identity(stat: os.stat_result) -> FileIdentity:
    """Return inode, size and time of the last change of a file, which differ once the file has changed."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one file.

    Its tensors are in the order of their bytes and cover the file's data without gap or overlap.
    """

    packed: bytes  #: length prefix and JSON, exactly as they stand in the file, compressed: see `unpack`
    data_start: int
    tensors: TensorTable
    metadata: Mapping[str, str]
    file_bytes: int
    identity: FileIdentity | None = None  #: of the file when it was read; None if the header came from elsewhere

    @property
    def raw(self) -> bytes:
        """Length prefix and JSON, exactly as they stand in the file."""
        return unpack(self.packed)


def pack(content: bytes) -> bytes:
    """Compress a header or an index: both list names that repeat."""
    return zlib.compress(content)


def unpack(packed: bytes, max_bytes: int = MAX_HEADER_BYTES + 8) -> bytes:
    """Return what `pack` compressed. Raises ValueError when it is damaged or larger than `max_bytes`."""
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(packed, max_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"damaged: {error}") from error
    if len(content) > max_bytes:
        raise ValueError(f"a header or an index is larger than {max_bytes} bytes, far more than models like these need")
    if not unpacking.eof:
        raise ValueError("damaged: it is cut off")
    return content


#: The files that are most often mistaken for a checkpoint, by their first bytes.
_OTHER_FILES = {
    b"{": ("JSON", "name the .safetensors files, e.g. ckpts/*.safetensors"),
    b"PK": ("an archive, as torch.save writes it", "convert it with safetensors.torch.save_file if you trust it"),
    b"version ": ("a pointer of git-lfs", "fetch the file itself: `git lfs pull`"),
}


def open_regular(path: Path) -> FileIO:
    """Open a file for reading, without a buffer.

    Raises CheckpointError for a pipe or a device, since reading that could wait forever. Raises OSError.
    """
    stream = FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise CheckpointError(path, "is a pipe or a device, not a file", hint="write its content to a file first")
    return stream


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise CheckpointError, which names the file, where the system fails in a block that reads it."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the error to raise where the system fails to read a file."""
    return CheckpointError(path, f"cannot be read: {error.strerror}")


def read_header(path: Path) -> Header:
    """Read and check the header of a file. No tensor is read.

    Raises CheckpointError with the file and the reason when the file cannot be opened or is not valid safetensors.
    """
    with reading(path), open_regular(path) as stream:
        stat = os.fstat(stream.fileno())
        length = header_length(stream.read(8), path, stat.st_size)
        header = parse_header(os.pread(stream.fileno(), 8 + length, 0), path, stat.st_size)
    return replace(header, identity=file_identity(stat))


def header_length(prefix: bytes, path: Path, file_bytes: int) -> int:
    """Return the number of JSON bytes that a file's first 8 bytes announce.

    Raises CheckpointError when that is more than the file has or than the limit.
    """
    if len(prefix) < 8:
        raise CheckpointError(
            path, f"not a safetensors file: it has {file_bytes} bytes, a header needs 8", hint="fetch it again"
        )
    length: int = _LENGTH.unpack(prefix)[0]
    if length > MAX_HEADER_BYTES or length + 8 > file_bytes:
        for start, (what, hint) in _OTHER_FILES.items():
            if prefix.startswith(start):
                raise CheckpointError(path, f"not a safetensors file but {what}", hint=hint)
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            path,
            f"not a safetensors file, or damaged: its header claims {length} bytes, the limit is {MAX_HEADER_BYTES}",
        )
    if length + 8 > file_bytes:
        raise CheckpointError(
            path, f"truncated: the header ends at byte {length + 8}, the file has {file_bytes}", hint="fetch it again"
        )
    return length


def parse_header(raw: bytes, path: Path, file_bytes: int) -> Header:
    """Check a header (length prefix and JSON) that belongs to a file of `file_bytes` bytes.

    Raises CheckpointError with the first fault.
    """

    def fail(reason: str, hint: str | None = None) -> NoReturn:
        raise CheckpointError(path, reason, hint=hint)

    names: list[str] = []
    signatures: list[Signature] = []
    starts, ends = array("Q"), array("Q")
    metadata: Mapping[str, str] = {}
    for name, value in members(raw[8:], fail):
        if name == "__metadata__":
            metadata = read_metadata(value, fail)
            continue
        signature, start, end = read_entry(name, value, fail)
        names.append(sys.intern(name))  # K models have the same names: one copy of each is enough
        signatures.append(signature)
        starts.append(start)
        ends.append(end)
    if ends[:-1] != starts[1:]:
        order = sorted(range(len(names)), key=lambda i: (starts[i], ends[i]))
        names, signatures = [names[i] for i in order], [signatures[i] for i in order]
        starts, ends = array("Q", (starts[i] for i in order)), array("Q", (ends[i] for i in order))
    check_bounds(names, starts, ends, file_bytes - len(raw), fail)
    bounds = array("Q", (len(raw) + start for start in starts))
    bounds.append(file_bytes)
    tensors = TensorTable(names, tuple(signatures), bounds, path)
    return Header(pack(raw), len(raw), tensors, metadata, file_bytes)


def new_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str] | None, path: Path
) -> Header:
    """Return the header of a file that is to be written; see `build_header`."""
    listed = list(tensors)
    raw = build_header(listed, metadata)
    return parse_header(raw, path, len(raw) + sum(nbytes for *_, nbytes in listed))


def build_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return a header (length prefix and JSON) for tensors `(name, dtype, shape, bytes)` laid out in this order.

    The JSON is padded with spaces to a multiple of 8 bytes, so that the data after it is aligned.
    """
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape, nbytes in tensors:
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text
