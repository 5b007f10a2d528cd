"""The modules of a model, as the names and shapes of its tensors show them."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedmr_merge.layers.natural_order import natural_order

Shapes = Mapping[str, tuple[int, ...]]

#: What stands for a position in a sequence of modules: `features.3`.
POSITION = re.compile(r"[0-9]{1,9}")
#: Where a module's weight stands: also that of a parametrised one, after torch's pruning and spectral and weight
#: normalisation, in the older and the newer spelling.
WEIGHTS = (
    "weight",
    "weight_orig",
    "weight_v",
    "parametrizations.weight.original",
    "parametrizations.weight.original1",
)
#: Which part of a block a layer with such a name is, in order (inverted residual, depthwise separable).
_ROLES = (
    r"stem|start|exp(?!.*pool)|primary|reduce|in_|_in\Z",
    r"dw|depth|mid|cheap",
    r"pw\Z|point",
    r"pwl|proj|out|end|head",
)


def last_part(name: str) -> str:
    """Return what a module is called in its parent."""
    return name.rpartition(".")[2]


def role(layer: str) -> int:
    """Return the place in its block that a layer's name speaks of."""
    return next((place for place, names in enumerate(_ROLES) if re.search(names, last_part(layer))), 1)


@dataclass(frozen=True)
class Modules:
    """The modules of a model that own tensors, as their names and shapes show them."""

    shapes: Shapes
    names: Collection[str]
    norms: Sequence[str]  #: those that may be normalisations: they own vectors and nothing else

    def weight(self, module: str) -> tuple[int, ...]:
        """Return the shape of a module's weight, parametrised or not; () where it has none."""
        for leaf in WEIGHTS:
            shape = self.shapes.get(f"{module}.{leaf}")
            # With its length beside it, weight_v is a direction; alone it can be anything.
            if shape is not None and (leaf != "weight_v" or f"{module}.weight_g" in self.shapes):
                return shape
        return ()

    def is_layer(self, module: str) -> bool:
        return len(self.weight(module)) >= 2

    def is_convolution(self, module: str) -> bool:
        return len(self.weight(module)) >= 3

    def has_statistics(self, module: str) -> bool:
        return f"{module}.running_mean" in self.shapes

    def size(self, norm: str) -> int:
        """Return how many channels a normalisation has."""
        return self.shapes.get(f"{norm}.weight", self.shapes.get(f"{norm}.running_mean", (0,)))[0]

    def outputs(self, layer: str) -> int:
        """Return how many channels a layer gives; of several parallel ones (`conv_dw.0`, `conv_dw.1`) all of them."""
        parts = self.parallel.get(layer)
        return sum(map(self.outputs, parts)) if parts else self.weight(layer)[0]

    def takes(self, layer: str, channels: int) -> bool:
        """Return whether a layer takes so many channels; of a grouped convolution, only a depthwise one is known to."""
        parts = self.parallel.get(layer, [layer])
        outputs, inputs = (sum(self.weight(part)[axis] for part in parts) for axis in (0, 1))
        is_depthwise = inputs == len(parts) and self.is_convolution(parts[0])
        return channels == (outputs if is_depthwise else inputs)

    def below(self, parent: str) -> list[str]:
        """Return the modules below one that own tensors."""
        if not parent:
            return self._sorted
        after_dot = chr(ord(".") + 1)
        return self._sorted[bisect_left(self._sorted, f"{parent}.") : bisect_left(self._sorted, parent + after_dot)]

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.names)

    @cached_property
    def parallel(self) -> dict[str, list[str]]:
        """Modules that are several convolutions side by side, each of other channels: module -> its convolutions."""
        inner = defaultdict(list)
        for name in self.names:
            parent, _, last = name.rpartition(".")
            inner[parent].append((last, name))
        return {
            parent: sorted((name for _, name in parts), key=natural_order)
            for parent, parts in inner.items()
            if len(parts) > 1
            and parent not in self.names
            and all(POSITION.fullmatch(last) and self.is_convolution(name) for last, name in parts)
        }

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """Parent -> the modules below it that own tensors, and the parallel ones."""
        found = defaultdict(list)
        for name in (*self.names, *self.parallel):
            found[name.rpartition(".")[0]].append(name)
        return found

    @cached_property
    def in_order(self) -> dict[str, int]:
        """Module -> its place in the order of definition where the file has that one, else in that of the names."""
        weights = {name: place for place, name in enumerate(self.shapes)}
        both = [n for n in self.names if f"{n}.weight" in weights and f"{n}.bias" in weights]
        # Writers that sort put a bias before its weight; a module defines its weight first.
        defined = bool(both) and all(weights[f"{n}.weight"] < weights[f"{n}.bias"] for n in both)
        return {n: place for place, n in enumerate(self.names if defined else sorted(self.names, key=natural_order))}
