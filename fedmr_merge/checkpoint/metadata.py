"""What fedmr-merge keeps in the metadata of a safetensors file: its keys, and how their values are written and read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from fedmr_merge.checkpoint.open import WeightFile
from fedmr_merge.checkpoint.writer import dumps
from fedmr_merge.errors import CheckpointError, RuleError

LAYERS_KEY = "fedmr_merge.layers"  #: written by the trainer: JSON, tensor name → layer name
HASHES_KEY = "fedmr_merge.sha256"  #: in a shard of a store: JSON, tensor name → SHA-256 of its bytes

_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_hashes(file: WeightFile) -> dict[str, str]:
    """Return the hashes that a shard of a store holds in its metadata: tensor name → SHA-256, for every tensor.

    Raises CheckpointError when they are damaged.
    """
    try:
        hashes: Any = json.loads(file.header.metadata[HASHES_KEY])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(file.path, f"metadata {HASHES_KEY}: not valid JSON: {error}") from error
    if (
        not isinstance(hashes, dict)
        or hashes.keys() != file.header.tensors.keys()
        or not all(isinstance(sha256, str) and _SHA256.fullmatch(sha256) for sha256 in hashes.values())
    ):
        raise CheckpointError(file.path, f"metadata {HASHES_KEY}: must map the name of every tensor to its SHA-256")
    return hashes


def shared_metadata(files: Sequence[WeightFile]) -> dict[str, str]:
    """Return the metadata of a component's files as one, without what describes a single shard of a store."""
    found: dict[str, str] = {}
    layers: dict[str, str] = {}
    for file in files:
        found |= {key: value for key, value in file.header.metadata.items() if key != HASHES_KEY}
        layers |= read_layers(file)
    return found | ({LAYERS_KEY: dumps(layers)} if layers else {})


def read_layers(file: WeightFile) -> dict[str, str]:
    """Return the grouping that the trainer wrote into a file's metadata: tensor name → layer name; empty without one.

    Raises RuleError when the grouping is damaged.
    """
    text = file.header.metadata.get(LAYERS_KEY)
    if text is None:
        return {}
    try:
        layers: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RuleError(f"{file.path}: metadata {LAYERS_KEY}: not valid JSON: {error}", path=file.path) from error
    if not isinstance(layers, dict) or not all(isinstance(layer, str) for layer in layers.values()):
        raise RuleError(f"{file.path}: metadata {LAYERS_KEY}: must map tensor names to layer names", path=file.path)
    return layers
