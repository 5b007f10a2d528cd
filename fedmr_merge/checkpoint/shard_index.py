"""The index of a sharded folder: which shard holds which tensor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedmr_merge.checkpoint.header import open_regular
from fedmr_merge.checkpoint.json_reader import JsonReader
from fedmr_merge.errors import CheckpointError

_CHUNK_BYTES = 1 << 18
_AGAIN = "fetch the index again, or write it anew with the library that saved the model"


def read_weight_map(index: Path, place: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield the names of the tensors and of their shards, as an index lists them.

    Errors name `place`, by default the index's path. Raises CheckpointError when the file cannot be read or is not an
    index.
    """
    place = place or index
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
                        raise _malformed(place)
                    yield name, shard
            reader.end()
    except OSError as error:
        raise CheckpointError(place, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(place, f"not valid JSON: {error}", hint=_AGAIN) from error
    if not is_listed:
        raise _malformed(place)


def _malformed(place: Path) -> CheckpointError:
    return CheckpointError(place, "weight_map must map tensor names to file names", hint=_AGAIN)
