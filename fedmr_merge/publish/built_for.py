"""What a `config.json` says a module is built for: the shape of an example, and the number of outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedmr_merge.errors import CheckpointError
from fedmr_merge.federated.models.base import image_shape_of

_MAX_SIDE = 4096
_MAX_CHANNELS = 1024
_MAX_OUTPUTS = 1_000_000
_MAX_EXTENT = 1 << 24  #: of an example in one dimension


def built_for(config: Mapping[str, Any], file: str) -> tuple[tuple[int, ...], int]:
    """Return the shape of an example and the number of outputs; `file` names the config in messages.

    Raises CheckpointError where they are missing or not possible.
    """
    if "input" not in config:  # a classifier of images, as all were in version 0.1.0
        return _image_shape(config, file), _outputs(config, "num_classes", file)
    found = config["input"].get("shape") if isinstance(config["input"], dict) else None
    shape = found if isinstance(found, list) else []
    if not 1 <= len(shape) <= 4 or not all(type(extent) is int and 1 <= extent <= _MAX_EXTENT for extent in shape):
        raise CheckpointError(file, "input must give shape, a list of whole numbers")
    return tuple(shape), _outputs(config, "num_outputs", file)


def _image_shape(config: Mapping[str, Any], file: str) -> tuple[int, int, int]:
    preprocess = config.get("preprocess")
    parts = [preprocess.get(key) if isinstance(preprocess, dict) else None for key in ("mean", "std", "size")]
    mean, std, size = [part if isinstance(part, list) else [] for part in parts]
    numbers = [value for value in (*mean, *std) if type(value) in (int, float) and math.isfinite(value)]
    fits = 1 <= len(mean) == len(std) <= _MAX_CHANNELS and len(numbers) == 2 * len(mean) and 0 not in std
    if not fits or len(size) != 2 or not all(type(side) is int and 1 <= side <= _MAX_SIDE for side in size):
        raise CheckpointError(
            file, "preprocess must give mean and std, a number for every channel, and size, [height, width]"
        )
    return image_shape_of({"mean": mean, "size": size})


def _outputs(config: Mapping[str, Any], key: str, file: str) -> int:
    outputs, names = config.get(key), config.get("label_names")
    if type(outputs) is not int or not 1 <= outputs <= _MAX_OUTPUTS:
        raise CheckpointError(file, f"{key} must be a whole number, found {str(outputs)[:80]!r}")
    if names is not None and (not isinstance(names, list) or len(names) != outputs):
        raise CheckpointError(file, f"label_names must be a list of {outputs} names")
    return outputs
