"""Find the layer that a normalisation belongs to, from what a checkpoint shows: names and shapes.

A normalisation has one number for each output channel of its layer, and stands beside it in the module tree. For each
normalisation the first of these that finds a layer of its size decides:

    conv1 / bn1, layer1.0.conv2 / layer1.0.bn2      it has its layer's name and number
    downsample.0 / downsample.1, features.3 / .4    it is the next module with weights in the same sequence,
                                                    which can be alone in a wrapper: features.3.conv
    convolution / normalization, c / bn             the only layer and the only normalisation of their module
    conv1_1x1, conv2_kxk / norm1, norm2             they have the same numbers
    conv_pw, conv_dw, conv_pwl / bn1, bn2, bn3      the only order in which each layer takes what the one before it
                                                    gives; where several orders fit, that of the model's other modules
                                                    with the same names, else that of the names' meaning or of the file
    convs.1 / bns.1, separable_1 / bn_sep_1, ...    the nearest layer in the module tree (`neighbours`)

The last three are for normalisations with running statistics, which must not part from what they were measured on.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from typing import TypeAlias

from fedmr_merge.layers.modules import POSITION, Modules, last_part, role
from fedmr_merge.layers.natural_order import natural_order
from fedmr_merge.layers.neighbours import Neighbours

#: Normalisation -> layer, by their names in their module.
Pairs: TypeAlias = tuple[tuple[str, str], ...]

_NORM_NAME = re.compile(r"(?P<before>.*?)(?P<word>batch_?norm|bn|norm|gn)(?P<after>\d*(?:_.*)?)\Z", re.IGNORECASE)
_MAX_GAP = 16  #: modules without weights between a layer and its normalisation in a sequence
_SQUARES = (1, 9, 25, 49)  #: numbers in a kernel
_MAX_ORDERED = 6  #: layers of a module whose orders are tried
#: Which layers a normalisation may be named after. `norm1` of a transformer belongs to no `linear1`; `bn1` can only be
#: batch normalisation.
_PARTNERS = {
    "bn": ("conv", "fc", "linear", "lin", "dense"),
    "batchnorm": ("conv", "fc", "linear"),
    "norm": ("conv",),
    "gn": ("conv",),
}


def pair(modules: Modules) -> dict[str, str]:
    """Return normalisation -> the layer that it belongs to, for those that have one."""
    found: dict[str, str] = {}
    for norm in modules.norms:
        numbered = POSITION.fullmatch(last_part(norm))
        candidates = _previous_in_sequence(norm, modules) if numbered else _namesakes(norm)
        for candidate in candidates:
            # Its size is that of the layer's output, or of its input where normalisation comes first.
            if modules.is_layer(candidate) and modules.size(norm) in modules.weight(candidate)[:2]:
                found[norm] = candidate
                break
    found |= _pair_siblings(modules, found)
    neighbours = Neighbours(modules, set(found.values()))
    for norm in modules.norms:
        if norm not in found and modules.has_statistics(norm) and (layer := neighbours.of(norm)):
            found[norm] = layer
    return found


def _namesakes(module: str) -> list[str]:
    parent, dot, last = module.rpartition(".")
    found = _NORM_NAME.match(last)
    if found is None:
        return []
    word = found["word"].lower().replace("_", "")
    return [f"{parent}{dot}{found['before']}{partner}{found['after']}" for partner in _PARTNERS[word]]


def _previous_in_sequence(module: str, modules: Modules) -> Iterator[str]:
    """Yield what stands before a module in its sequence: the next module with weights, and first the convolution of a
    wrapper that stands between the two and holds nothing else.
    """
    parent, dot, last = module.rpartition(".")
    for index in range(int(last) - 1, max(-1, int(last) - _MAX_GAP), -1):
        before = f"{parent}{dot}{index}"
        if before in modules.names:
            yield before
            return
        inside = modules.below(before)
        if (
            len(inside) == 1
            and modules.is_convolution(inside[0])
            and modules.outputs(inside[0]) == modules.size(module)
        ):
            yield inside[0]


# Siblings


@dataclass
class _Siblings:
    """The layers and normalisations of one module that have no partner yet."""

    parent: str
    norms: list[str]
    layers: list[str]
    options: list[Pairs] = field(default_factory=list)  #: the ways to pair them that sizes allow

    @property
    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return tuple(_last(self.norms)), tuple(sorted(_last(self.layers)))


def _last(names: Iterable[str]) -> list[str]:
    return [last_part(name) for name in names]


def _pair_siblings(modules: Modules, found: Mapping[str, str]) -> dict[str, str]:
    """Pair the layers of each module; what one module leaves open, another with the same names may decide."""
    families = list(_siblings(modules, found))
    votes: defaultdict[object, Counter[Pairs]] = defaultdict(Counter)
    for family in families:
        family.options = list(dict.fromkeys(_fitting(family, modules)))
        if len(family.options) == 1:
            votes[family.names][family.options[0]] += 1
    paired: dict[str, str] = {}
    for family in families:
        if not family.options:
            continue
        # `max` takes the first of equals: the options stand in the order of the names' meaning, then of the file.
        chosen = max(family.options, key=lambda pairs: votes[family.names][pairs])
        dot = "." if family.parent else ""
        paired |= {f"{family.parent}{dot}{norm}": f"{family.parent}{dot}{layer}" for norm, layer in chosen}
    return paired


def _siblings(modules: Modules, found: Mapping[str, str]) -> Iterator[_Siblings]:
    taken = set(found.values())
    free = defaultdict(list)
    for norm in modules.norms:
        if norm not in found:
            free[norm.rpartition(".")[0]].append(norm)
    for parent, norms in free.items():
        layers = [
            child
            for child in modules.children[parent]
            if child not in taken and (modules.is_layer(child) or child in modules.parallel)
        ]
        with_statistics = [norm for norm in norms if modules.has_statistics(norm)]
        if with_statistics:
            yield _Siblings(parent, sorted(with_statistics, key=natural_order), layers)
        elif len(norms) == 1 and len(layers) == 1 and modules.is_convolution(layers[0]):
            yield _Siblings(parent, norms, layers)


def _fitting(family: _Siblings, modules: Modules) -> Iterator[Pairs]:
    """Yield the ways in which the normalisations can follow the layers, the likeliest first.

    In the best of them each layer takes what the one before it gives.
    """
    layers = family.layers
    if len(layers) > len(family.norms):  # a layer that is normalised needs no bias
        layers = [layer for layer in layers if f"{layer}.bias" not in modules.shapes] or layers
    if not layers or len(layers) > _MAX_ORDERED:
        return
    layers = sorted(layers, key=lambda layer: (role(layer), modules.in_order.get(layer, 0)))
    numbered = _by_number(family.norms, layers, modules)
    if numbered:
        yield numbered
        return
    norms = family.norms[-len(layers) :]
    fitting: list[tuple[int, Pairs]] = []
    for order in permutations(layers, len(norms)):
        if all(modules.size(norm) == modules.outputs(layer) for norm, layer in zip(norms, order, strict=True)):
            links = list(pairwise(order))
            breaks = sum(not modules.takes(after, modules.outputs(before)) for before, after in links)
            fitting.append((breaks, tuple(zip(_last(norms), _last(order), strict=True))))
    if not fitting and len(norms) == len(layers):
        fitting = list(_mixtures(norms, layers, modules))
    fewest = min((breaks for breaks, _ in fitting), default=0)
    yield from (pairs for breaks, pairs in fitting if breaks == fewest)


def _mixtures(norms: Sequence[str], layers: Sequence[str], modules: Modules) -> Iterator[tuple[int, Pairs]]:
    """Yield the ways to pair layers that mix kernels, with the number of breaks in each.

    Their weights are matrices: each row is the kernel of a convolution, flattened, and so a multiple of its output
    channels (Yang et al., "CondConv", 2019).
    """
    sizes = [modules.size(norm) for norm in norms]
    for order in permutations(layers):
        shapes = [modules.weight(layer) for layer in order]
        if all(len(s) == 2 and s[1] > size and s[1] % size == 0 for s, size in zip(shapes, sizes, strict=True)):
            inputs = [shape[1] // size for shape, size in zip(shapes, sizes, strict=True)]
            links = zip(sizes, inputs[1:], strict=False)
            # A layer takes all channels of the one before it, or is depthwise, and its kernels are square.
            breaks = sum(count not in _SQUARES and count not in [size * s for s in _SQUARES] for size, count in links)
            yield breaks, tuple(zip(_last(norms), _last(order), strict=True))


def _by_number(norms: Sequence[str], layers: Sequence[str], modules: Modules) -> Pairs | None:
    """Pair by the first number in each name where each normalisation finds one layer of its number and size."""
    pairs = []
    for norm in norms:
        number = re.search("[0-9]+", last_part(norm))
        matching = [
            layer
            for layer in layers
            if number
            and (own := re.search("[0-9]+", last_part(layer)))
            and own.group() == number.group()
            and modules.outputs(layer) == modules.size(norm)
        ]
        if len(matching) == 1:
            pairs.append((last_part(norm), last_part(matching[0])))
    return tuple(pairs) if pairs else None
