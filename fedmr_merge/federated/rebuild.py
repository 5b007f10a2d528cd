"""`config.json` → module: allow-listed architectures, checked options, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedmr_merge.errors import CheckpointError
from fedmr_merge.federated.architecture import Classifier, image_shape_of
from fedmr_merge.federated.catalogue import ARCHITECTURES
from fedmr_merge.options import Faults, check_options

_MAX_SIDE = 4096
_MAX_CLASSES = 1_000_000


def rebuild(config: Mapping[str, Any], source: str) -> Classifier:
    """Build the module that a `config.json` describes; its weights are still random. `source` is what messages call
    the file.

    Raises CheckpointError when the architecture is unknown or an option of it is not possible.
    """
    name, options, classes = config.get("architecture"), config.get("arch_args"), config.get("num_classes")
    if not isinstance(name, str) or name not in ARCHITECTURES.names():
        raise CheckpointError(
            source, f"unknown architecture {name!r}", hint=f"known are {', '.join(ARCHITECTURES.names())}"
        )
    if type(classes) is not int or not 1 <= classes <= _MAX_CLASSES:
        raise CheckpointError(source, f"num_classes must be a whole number, found {classes!r}")
    try:
        shape = image_shape_of(config["preprocess"])
        if not all(1 <= side <= _MAX_SIDE for side in shape):
            raise ValueError(f"images of {shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(source, f"preprocess must give mean, std and size: {error!r}") from error
    if not isinstance(options, dict):
        raise CheckpointError(source, f"arch_args must be a mapping, found {options!r}")
    architecture = ARCHITECTURES.find(name)
    faults = Faults()
    values = check_options(architecture, options, "arch_args", faults)
    if faults:
        raise CheckpointError(source, "; ".join(map(str, faults)))
    return architecture(**values).initialise(shape, classes, seed=0)
