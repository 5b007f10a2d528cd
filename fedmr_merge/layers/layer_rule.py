"""The `layer` rule: a convolution or linear layer with its bias and its normalisation, statistics included (the
paper's layer).

What belongs together is read from the grouping that the trainer writes into a file's metadata; else from the names,
since names are all that a checkpoint tells:

    conv1 / bn1, layer1.0.conv2 / layer1.0.bn2      the normalisation has its convolution's name and number
    downsample.0 / downsample.1, features.3 / .4    it is the next module with weights in the same sequence
    q_proj.lora_A / q_proj.lora_B                   an adapter's factors are one layer: the mean of the products is not
                                                    the product of the means
    everything else                                 stays with its parent module
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from fedmr_merge.checkpoint.metadata import read_layers
from fedmr_merge.checkpoint.open import Checkpoint

Shapes = Mapping[str, tuple[int, ...]]

_NORM_LEAVES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_NORM_NAME = re.compile(r"(?P<before>.*?)(?P<word>batch_?norm|bn|norm|gn)(?P<after>\d*(?:_.*)?)\Z", re.IGNORECASE)
#: As peft and kohya write them, with or without the adapter's name at the end.
_LORA = re.compile(r"(?P<module>.+)\.lora_(?:(?:embedding_)?[AB]|magnitude_vector|down|up|mid)(?:\..+)?", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,9}")
_MAX_GAP = 16  #: modules without weights between a layer and its normalisation in a sequence
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
        found |= read_layers(file)
    return found or None


def layers_from_names(shapes: Shapes) -> tuple[dict[str, str], int]:
    """Return tensor name -> layer name, and how many normalisations joined a layer."""
    names: dict[str, str] = {}  # one text of each module's name serves all its tensors
    layers: dict[str, str] = {}
    others: set[str] = set()  # modules with tensors that no normalisation has
    for name in shapes:
        adapter = _LORA.fullmatch(name) if ".lora_" in name else None
        if adapter:
            module, leaf = adapter["module"], "lora"
        elif ".weight." in name and f"{(module := name.partition('.weight.')[0])}.weight" in shapes:
            leaf = "quantised"  # what bitsandbytes keeps beside a weight's codes: weight.absmax, weight.quant_map …
        else:
            module, _, leaf = name.rpartition(".")
        layers[name] = names.setdefault(module or name, module or name)
        if leaf not in _NORM_LEAVES:
            others.add(layers[name])
    modules = names.keys()
    joined = {
        module: partner
        for module in modules - others
        if _is_norm(module, shapes) and (partner := _partner(module, shapes, modules)) is not None
    }
    if joined:
        layers = {name: joined.get(module, module) for name, module in layers.items()}
    return layers, len(joined)


def _is_norm(module: str, shapes: Shapes) -> bool:
    return len(shapes.get(f"{module}.weight", shapes.get(f"{module}.running_mean", ()))) == 1


def _is_layer(module: str, shapes: Shapes) -> bool:
    return len(shapes.get(f"{module}.weight", ())) >= 2


def _partner(module: str, shapes: Shapes, modules: Collection[str]) -> str | None:
    """Return the layer that a normalisation belongs to, None when the names do not tell."""
    is_numbered = _NUMBER.fullmatch(module.rpartition(".")[2])
    candidates = _previous_in_sequence(module, modules) if is_numbered else _namesakes(module)
    size = shapes.get(f"{module}.weight", shapes.get(f"{module}.running_mean", (0,)))[0]
    for candidate in candidates:
        # Its size is that of the layer's output, or of its input where normalisation comes first.
        if _is_layer(candidate, shapes) and size in shapes[f"{candidate}.weight"][:2]:
            return candidate
    return None


def _namesakes(module: str) -> list[str]:
    parent, dot, last = module.rpartition(".")
    found = _NORM_NAME.match(last)
    if found is None:
        return []
    word = found["word"].lower().replace("_", "")
    return [f"{parent}{dot}{found['before']}{partner}{found['after']}" for partner in _PARTNERS[word]]


def _previous_in_sequence(module: str, modules: Collection[str]) -> list[str]:
    parent, dot, last = module.rpartition(".")
    for index in range(int(last) - 1, max(-1, int(last) - _MAX_GAP), -1):
        if f"{parent}{dot}{index}" in modules:
            return [f"{parent}{dot}{index}"]
    return []
