"""Read, check and write the header of a safetensors file.

A safetensors file is an 8-byte little-endian length, that many bytes of JSON, and the tensors' bytes back to back.
The JSON maps each tensor's name to its dtype, its shape and its byte range in what follows it, and `__metadata__` to
a map of strings.

What is accepted here, the `safetensors` package accepts too. Refused beyond it, since each would let something vanish
or be read in two ways: a name that stands twice (it keeps the last), keys of an entry that nobody knows, and entries
and dtypes that are written as another kind of JSON value than every writer uses.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from stat import S_ISREG
from typing import Any, NoReturn

from fedmr_merge.checkpoint.header_json import (
    CHUNK_BYTES,
    Packed,
    check_bounds,
    members,
    pack,
    read_entry,
    read_metadata,
    unpack,
)
from fedmr_merge.checkpoint.tensor_table import Signature, TensorTable
from fedmr_merge.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  #: the `safetensors` package's own limit

_LENGTH = struct.Struct("<Q")


#: Inode, size and time of the last change: what tells whether a file is still the one it was.
FileIdentity = tuple[int, int, int]


def file_identity(stat: os.stat_result) -> FileIdentity:
    """Return what tells one state of a file from another."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one file.

    Its tensors are in the order of their bytes and cover the file's data without gap or overlap.
    """

    packed: bytes  #: length prefix and JSON, exactly as they stand in the file, compressed: the lists of names repeat
    data_start: int
    tensors: TensorTable
    has_metadata: bool
    file_bytes: int
    identity: FileIdentity | None = None  #: of the file when it was read; None where the header came from elsewhere

    @property
    def raw(self) -> bytes:
        """Length prefix and JSON, exactly as they stand in the file."""
        return b"".join(self.pieces)

    @property
    def pieces(self) -> Iterator[bytes]:
        """The same, piece by piece: a header can have many megabytes."""
        return unpack(self.packed)

    @property
    def metadata(self) -> Mapping[str, str]:
        """`__metadata__`, read when it is asked for: a store's shards hold a hash of every tensor there."""
        if not self.has_metadata:
            return {}
        known = members(Packed(self.packed, self.data_start, has_minus=False, has_escape=False), _unexpected)
        return read_metadata(next(value for name, value in known if name == "__metadata__"), _unexpected)


def _unexpected(reason: str) -> NoReturn:
    raise AssertionError(reason)  # the header was checked when it was read


#: What is taken for a checkpoint most often, by its first bytes.
_OTHER_FILES = {
    b"{": ("JSON", "name the .safetensors files, e.g. ckpts/*.safetensors"),
    b"PK": ("an archive, as torch.save writes it", "convert it with safetensors.torch.save_file where you trust it"),
    b"version ": ("a pointer of git-lfs", "fetch the file itself: `git lfs pull`"),
}


def open_regular(path: Path) -> FileIO:
    """Open a file for reading, without a buffer.

    Raises CheckpointError where it is none, but a pipe or a device: to read that could wait for ever. Raises OSError.
    """
    stream = FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise CheckpointError(path, "not a file, but a pipe or a device", hint="write what it gives to a file")
    return stream


def read_header(path: Path) -> Header:
    """Read and check the header of a file. No tensor is read.

    Raises CheckpointError with the file and the reason when the file cannot be opened or is not valid safetensors.
    """
    try:
        with open_regular(path) as stream:
            stat = os.fstat(stream.fileno())
            length = header_length(stream.read(8), path, stat.st_size)
            chunks = (
                os.pread(stream.fileno(), min(CHUNK_BYTES, 8 + length - at), at)
                for at in range(0, 8 + length, CHUNK_BYTES)
            )
            header = parse_header(chunks, path, stat.st_size)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    return replace(header, identity=file_identity(stat))


def header_length(prefix: bytes, path: Path, file_bytes: int) -> int:
    """Return the number of JSON bytes that a file's first 8 bytes announce, checked against the file's size and
    the limit.
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


def parse_header(pieces: Iterable[bytes], path: Path, file_bytes: int) -> Header:
    """Check a header (length prefix and JSON, in pieces) that belongs to a file of `file_bytes` bytes."""

    def fail(reason: str, hint: str | None = None) -> NoReturn:
        raise CheckpointError(path, reason, hint=hint)

    packed = pack(pieces)
    names: list[str] = []
    seen: set[str] = set()
    signatures: list[Signature] = []
    starts, ends = array("Q"), array("Q")
    has_metadata = False
    for name, value in members(packed, fail):
        if name in seen:
            fail(f"the header names {name!r} twice")
        seen.add(name)
        if name == "__metadata__":
            has_metadata = bool(read_metadata(value, fail))
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
    check_bounds(names, starts, ends, file_bytes - packed.nbytes, fail)
    bounds = array("Q", (packed.nbytes + start for start in starts))
    bounds.append(file_bytes)
    tensors = TensorTable(names, tuple(signatures), bounds, path)
    return Header(packed.content, packed.nbytes, tensors, has_metadata, file_bytes)


def new_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str] | None, path: Path
) -> Header:
    """Return the header of a file that is to be written; see `build_header`."""
    listed = list(tensors)
    raw = build_header(listed, metadata)
    return parse_header([raw], path, len(raw) + sum(nbytes for *_, nbytes in listed))


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
