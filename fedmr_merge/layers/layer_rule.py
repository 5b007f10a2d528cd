"""The `layer` rule: a convolution or linear layer with its bias and its normalisation, statistics included (the
paper's layer).

What belongs together is read from the grouping that the trainer writes into a file's metadata; else from names and
shapes, since these are all that a checkpoint shows:

    bn1, downsample.1, normalization, ...           joins its convolution, which `pairing` finds
    q_proj.lora_A / q_proj.lora_B                   an adapter's factors are one layer: the mean of the products is not
                                                    the product of the means
    conv.parametrizations.weight.original, ...      belong to their module (spectral and weight normalisation)
    everything else                                 stays with its parent module
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fedmr_merge.checkpoint.metadata import read_layers
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.layers.adapter_names import module_of_factor
from fedmr_merge.layers.modules import WEIGHTS, Modules, Shapes
from fedmr_merge.layers.pairing import pair
from fedmr_merge.layers.plan import LayerGroup

_STATISTICS = ".running_mean"
_WEIGHTS = tuple(f".{leaf}" for leaf in WEIGHTS)
_PARAMETRISED = ".parametrizations."  #: what torch puts between a module and what one of its tensors is computed from
_NORM_LEAVES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


class Layers(NamedTuple):
    """The layers of a model, as its names and shapes show them."""

    layer_of: dict[str, str]  #: tensor name -> layer name
    joined: int  #: how many normalisations joined their layer


def trainer_layers(checkpoint: Checkpoint) -> dict[str, str] | None:
    """Return the grouping that the trainer wrote into a checkpoint's metadata, tensor name -> layer name; None where
    there is none.

    Raises RuleError when it is damaged.
    """
    found: dict[str, str] = {}
    for file in checkpoint.files:
        found |= read_layers(file)
    return found or None


def layers_from_names(shapes: Shapes) -> Layers:
    """Return the layers of a model, in which every tensor has its place."""
    names: dict[str, str] = {}  # one string of each module's name serves all its tensors
    layers: dict[str, str] = {}
    others: set[str] = set()  # modules with tensors that no normalisation has
    for name in shapes:
        if _PARAMETRISED in name:
            module, leaf = name.partition(_PARAMETRISED)[0], "parametrised"
        elif adapted := module_of_factor(name):
            module, leaf = adapted, "factor"
        elif ".weight." in name and f"{(module := name.partition('.weight.')[0])}.weight" in shapes:
            leaf = "quantised"  # what bitsandbytes keeps beside a weight's codes: weight.absmax, weight.quant_map …
        else:
            module, _, leaf = name.rpartition(".")
        layers[name] = names.setdefault(module or name, module or name)
        if leaf not in _NORM_LEAVES:
            others.add(layers[name])
    modules = Modules(shapes, names.keys(), [n for n in names if n not in others and _is_norm(n, shapes)])
    joined = pair(modules)
    whole = {part: parent for parent in set(joined.values()) for part in modules.parallel.get(parent, ())}
    moved = joined | whole
    if moved:
        layers = {name: moved.get(module, module) for name, module in layers.items()}
    return Layers(layers, len(joined))


def statistics_without_layer(shapes: Shapes, groups: Iterable[LayerGroup]) -> list[str]:
    """Return the normalisations with running statistics in whose layer group there is no layer of their size.

    Under any rule: their statistics would part from the weights that they were measured on.
    """
    found: list[str] = []
    for group in groups:
        norms = [tensor.removesuffix(_STATISTICS) for tensor in group.tensors if tensor.endswith(_STATISTICS)]
        if not norms:
            continue
        layers = [shapes[t] for t in group.tensors if t.endswith(_WEIGHTS) and len(shapes[t]) > 1]
        channels = {size for shape in layers for size in shape[:2]} | {sum(shape[0] for shape in layers)}
        most = max((shape[0] for shape in layers), default=0)  # a normalisation can be of a part of what a layer gives
        sizes = {norm: shapes[f"{norm}{_STATISTICS}"] for norm in norms}
        rows = [shape[1] for shape in layers if len(shape) == 2]  # of a mixture of kernels, each row is one, flattened
        found += [
            norm
            for norm, size in sizes.items()
            if len(size) == 1
            and size[0] not in channels
            and size[0] > most
            and not any(row > size[0] and row % size[0] == 0 for row in rows)
        ]
    return found


def _is_norm(module: str, shapes: Shapes) -> bool:
    return len(shapes.get(f"{module}.weight", shapes.get(f"{module}.running_mean", ()))) == 1
