"""The index of a sharded folder: which shard holds which tensor."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NoReturn

from fedmr_merge.checkpoint.header import open_regular
from fedmr_merge.checkpoint.json_reader import named_once
from fedmr_merge.errors import CheckpointError

_MAX_BYTES = 256 << 20  #: an index of 100,000 tensors has 10 MB


def read_weight_map(index: Path, place: Path | None = None) -> dict[str, str]:
    """Return the shard of each tensor, in the order in which an index lists them.

    Errors name `place`, by default the index's path. Raises CheckpointError when the file cannot be read or is not an
    index.
    """
    place = place or index
    try:
        with open_regular(index) as stream:
            if (nbytes := os.fstat(stream.fileno()).st_size) > _MAX_BYTES:
                _refuse(place, f"has {nbytes:,} bytes, more than an index needs")
            content = json.loads(stream.readall(), object_pairs_hook=named_once)
    except OSError as error:
        raise CheckpointError(place, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        _refuse(place, f"not valid JSON: {error}")
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(s, str) for s in weight_map.values()):
        _refuse(place, "weight_map must map tensor names to file names")
    return weight_map


def _refuse(place: Path, reason: str) -> NoReturn:
    raise CheckpointError(
        place, reason, hint="fetch the index again, or write it anew with the library that saved the model"
    )
