"""The `layer` rule: a convolution or linear layer with its bias and its normalisation, statistics included (the
paper's layer).

What belongs together is read from the grouping that the trainer writes into a file's metadata; else from the names,
since names are all that a checkpoint tells:

    conv1 / bn1, layer1.0.conv2 / layer1.0.bn2      the normalisation has its convolution's name and number
    downsample.0 / downsample.1, features.3 / .4    it is the next module with weights in the same sequence
    everything else                                 stays with its parent module
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from fedmr_merge.checkpoint.source import Checkpoint
from fedmr_merge.errors import RuleError
from fedmr_merge.recombination.layout import LAYERS_KEY

_NORM_LEAVES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_NORM_NAME = re.compile(r"(?P<before>.*?)(?P<word>batch_?norm|bn|norm|gn)(?P<after>\d*(?:_.*)?)\Z", re.IGNORECASE)
#: Which layers a normalisation may be named after. `norm1` of a transformer belongs to no `linear1`; `bn1` can only be
#: batch normalisation.
_PARTNERS = {
    "bn": ("conv", "fc", "linear", "lin", "dense"),
    "batchnorm": ("conv", "fc", "linear"),
    "norm": ("conv",),
    "gn": ("conv",),
}


def trainer_layers(checkpoint: Checkpoint) -> dict[str, str] | None:
    """Return the grouping that the trainer wrote into a checkpoint's metadata, tensor name -> layer name; None where
    there is none.

    Raises RuleError when it is damaged.
    """
    found: dict[str, str] = {}
    for file in checkpoint.files:
        text = file.header.metadata.get(LAYERS_KEY)
        if text is None:
            continue
        try:
            layers: Any = json.loads(text)
        except ValueError as error:
            raise RuleError(f"{file.path}: metadata {LAYERS_KEY}: not valid JSON: {error}") from error
        if not isinstance(layers, dict) or not all(isinstance(layer, str) for layer in layers.values()):
            raise RuleError(f"{file.path}: metadata {LAYERS_KEY}: must map tensor names to layer names")
        found |= layers
    return found or None


def layers_from_names(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, str], int]:
    """Return tensor name -> layer name, and how many normalisations joined a layer."""
    modules: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        modules[module or name][leaf] = shape
    joined = {
        module: partner
        for module, leaves in modules.items()
        if _is_norm(leaves) and (partner := _partner(module, leaves, modules)) is not None
    }
    layers = {}
    for name in shapes:
        module = name.rpartition(".")[0] or name
        layers[name] = joined.get(module, module)
    return layers, len(joined)


def _is_norm(leaves: Mapping[str, tuple[int, ...]]) -> bool:
    return leaves.keys() <= _NORM_LEAVES and len(leaves.get("weight", leaves.get("running_mean", ()))) == 1


def _is_layer(leaves: Mapping[str, tuple[int, ...]] | None) -> bool:
    return leaves is not None and len(leaves.get("weight", ())) >= 2


def _partner(module: str, norm: Mapping[str, tuple[int, ...]], modules: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the layer that a normalisation belongs to, None when the names do not tell."""
    candidates = _previous_in_sequence(module, modules) if module.rpartition(".")[2].isdigit() else _namesakes(module)
    size = norm.get("weight", norm.get("running_mean", (0,)))[0]
    for candidate in candidates:
        leaves = modules.get(candidate)
        # Its size is that of the layer's output, or of its input where normalisation comes first.
        if leaves is not None and _is_layer(leaves) and size in leaves["weight"][:2]:
            return candidate
    return None


def _namesakes(module: str) -> list[str]:
    parent, dot, last = module.rpartition(".")
    found = _NORM_NAME.match(last)
    if found is None:
        return []
    word = found["word"].lower().replace("_", "")
    return [f"{parent}{dot}{found['before']}{partner}{found['after']}" for partner in _PARTNERS[word]]


def _previous_in_sequence(module: str, modules: Mapping[str, Any]) -> list[str]:
    parent, dot, last = module.rpartition(".")
    for index in range(int(last) - 1, -1, -1):
        if f"{parent}{dot}{index}" in modules:
            return [f"{parent}{dot}{index}"]
    return []
