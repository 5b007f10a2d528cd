"""The index of a sharded folder: which shard holds which tensor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedmr_merge.checkpoint.header import open_regular
from fedmr_merge.checkpoint.json_reader import JsonReader
from fedmr_merge.errors import CheckpointError

_CHUNK_BYTES = 1 << 18


def read_weight_map(index: Path) -> Iterator[tuple[str, str]]:
    """Yield the tensors' names and their shards, as an index lists them.

    Raises CheckpointError when it cannot be read or is none.
    """
    is_listed = False
    try:
        with open_regular(index) as stream:
            reader = JsonReader(iter(lambda: stream.read(_CHUNK_BYTES), b""))
            for key in reader.members():
                if key != "weight_map":
                    reader.value()
                    continue
                for name in reader.members():
                    shard = reader.value()
                    is_listed = True
                    if not isinstance(shard, str):
                        raise CheckpointError(index, "weight_map must map tensor names to file names")
                    yield name, shard
            reader.end()
    except OSError as error:
        raise CheckpointError(index, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(index, f"not valid JSON: {error}") from error
    if not is_listed:
        raise CheckpointError(index, "weight_map must map tensor names to file names")
