"""Compute the SHA-256 of tensors on disk, and the hashes of files, in bounded memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

from fedmr_merge.checkpoint.copying import BUFFER_BYTES, SourceWatch, read_range
from fedmr_merge.checkpoint.tensor_table import TensorEntry, positions
from fedmr_merge.checkpoint.writer import Progress
from fedmr_merge.cores import usable_cores

_UNIT_BYTES = 32 << 20  # that a thread hashes before it takes more work
_DIGEST_BYTES = 32


def file_hash(path: Path, digest: Any) -> str:
    """Feed a file to a hash object and return its hex digest."""
    with path.open("rb") as stream:
        while piece := stream.read(BUFFER_BYTES):
            digest.update(piece)
    return str(digest.hexdigest())


class Digests(Mapping[str, str]):
    """The SHA-256 of tensors, held as bytes and returned in hexadecimal."""

    def __init__(self, names: Iterable[str]) -> None:
        self._positions = positions(names)
        self._bytes = bytearray(_DIGEST_BYTES * len(self._positions))

    def __setitem__(self, name: str, digest: bytes | bytearray) -> None:
        start = _DIGEST_BYTES * self._positions[name]
        self._bytes[start : start + _DIGEST_BYTES] = digest

    def fill(self, names: Iterable[str], digests: bytearray) -> None:
        """Set the SHA-256 of these tensors from digests that follow one another."""
        for position, name in enumerate(names):
            self[name] = digests[_DIGEST_BYTES * position : _DIGEST_BYTES * (position + 1)]

    def __getitem__(self, name: str) -> str:
        start = _DIGEST_BYTES * self._positions[name]
        return self._bytes[start : start + _DIGEST_BYTES].hex()

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)


def hash_tensors(entries: Mapping[str, TensorEntry], watch: SourceWatch, progress: Progress | None = None) -> Digests:
    """Return the SHA-256 of every tensor, in as many threads as there are cores to use.

    Raises CheckpointError when a file ends before one of its tensors does, or changes.
    """
    digests = Digests(entries)

    def work(unit: Sequence[str]) -> None:
        path = entries[unit[0]].file
        buffer = memoryview(bytearray(BUFFER_BYTES))
        descriptor = watch.open(path)
        try:
            for name in unit:
                entry = entries[name]
                digest = hashlib.sha256()
                for part in read_range(path, descriptor, entry.start, entry.end, buffer):
                    digest.update(part)
                digests[name] = digest.digest()
                if progress:
                    progress(entry.nbytes)
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in pool.map(work, _units(entries)):
            pass
    return digests


def _units(entries: Mapping[str, TensorEntry]) -> Iterator[list[str]]:
    """Yield lists of tensors of one file, each list about as many bytes as the others."""
    for _, of_file in groupby(entries.items(), key=lambda item: item[1].file):
        unit: list[str] = []
        size = 0
        for name, entry in of_file:
            unit.append(name)
            size += entry.nbytes
            if size >= _UNIT_BYTES:
                yield unit
                unit, size = [], 0
        if unit:
            yield unit
