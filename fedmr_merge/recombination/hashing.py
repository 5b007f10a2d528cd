"""SHA-256 of tensors on disk, in bounded memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from fedmr_merge.checkpoint.copying import BUFFER_BYTES, SourceWatch, read_range
from fedmr_merge.checkpoint.header import TensorEntry
from fedmr_merge.checkpoint.writer import Progress

_UNIT_BYTES = 32 << 20  # of one thread's work at a time

Named = tuple[str, TensorEntry]


def hash_tensors(
    entries: Mapping[str, TensorEntry], watch: SourceWatch, progress: Progress | None = None
) -> dict[str, str]:
    """Return the SHA-256 of every tensor, in as many threads as there are cores.

    Raises CheckpointError when a file ends before one of its tensors does, or changes.
    """

    def work(unit: tuple[Path, list[Named]]) -> list[tuple[str, str]]:
        path, named = unit
        buffer = memoryview(bytearray(BUFFER_BYTES))
        descriptor = watch.open(path)
        try:
            found = []
            for name, entry in named:
                digest = hashlib.sha256()
                for part in read_range(path, descriptor, entry.start, entry.end, buffer):
                    digest.update(part)
                found.append((name, digest.hexdigest()))
                if progress:
                    progress(entry.nbytes)
            return found
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return {name: digest for found in pool.map(work, _units(entries.items())) for name, digest in found}


def _units(named: Iterable[Named]) -> Iterator[tuple[Path, list[Named]]]:
    for path, of_file in groupby(named, key=lambda item: item[1].file):
        unit: list[Named] = []
        size = 0
        for item in of_file:
            unit.append(item)
            size += item[1].nbytes
            if size >= _UNIT_BYTES:
                yield path, unit
                unit, size = [], 0
        if unit:
            yield path, unit
