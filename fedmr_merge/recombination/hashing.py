"""SHA-256 of byte ranges, in bounded memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedmr_merge.checkpoint.header import TensorEntry
from fedmr_merge.checkpoint.writer import Progress
from fedmr_merge.errors import CheckpointError

_CHUNK_BYTES = 1 << 18


def hash_range(path: Path, descriptor: int, start: int, end: int) -> str:
    """Return the SHA-256 of a file's bytes from `start` to `end`.

    Raises CheckpointError when the file ends before that.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, end - start)))
    while start < end:
        count = os.preadv(descriptor, [buffer[: end - start]], start)
        if count == 0:
            raise CheckpointError(path, f"truncated: it ends before byte {end}")
        digest.update(buffer[:count])
        start += count
    return digest.hexdigest()


def hash_run(path: Path, start: int, sizes: Sequence[tuple[str, int]]) -> Iterator[tuple[str, str]]:
    """Yield (name, SHA-256) of tensors `(name, bytes)` that stand back to back in a file from `start`."""
    with path.open("rb", buffering=0) as stream:
        for name, nbytes in sizes:
            yield name, hash_range(path, stream.fileno(), start, start + nbytes)
            start += nbytes


def hash_tensors(entries: Mapping[str, TensorEntry], progress: Progress | None = None) -> dict[str, str]:
    """Return the SHA-256 of every tensor, files in parallel."""
    by_file: dict[Path, list[str]] = {}
    for name, entry in entries.items():
        by_file.setdefault(entry.file, []).append(name)

    def work(item: tuple[Path, list[str]]) -> list[tuple[str, str]]:
        path, names = item
        found = []
        with path.open("rb", buffering=0) as stream:
            for name in names:
                entry = entries[name]
                found.append((name, hash_range(path, stream.fileno(), entry.start, entry.end)))
                if progress:
                    progress(entry.nbytes)
        return found

    with ThreadPoolExecutor(max(1, min(len(by_file), os.cpu_count() or 1))) as pool:
        return {name: digest for found in pool.map(work, by_file.items()) for name, digest in found}
