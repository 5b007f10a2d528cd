"""Find the layer of a normalisation elsewhere in the module tree than beside it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedmr_merge.layers.modules import POSITION, Modules, last_part, role

_NORM_WORD = re.compile("bn|norm", re.IGNORECASE)
#: Modules looked at for all normalisations of a model together: real ones need a hundredth of it.
_MAX_LOOKS = 5_000_000


@dataclass
class Neighbours:
    """Looks for layers around a normalisation, the nearest first."""

    modules: Modules
    taken: set[str]  #: the layers that have a normalisation
    looks: int = 0

    def of(self, norm: str) -> str | None:
        """Return the layer that a normalisation belongs to, None where the module tree does not show it."""
        if self.looks > _MAX_LOOKS:
            return None
        layer = self._in_twin(norm) or self._nearest(norm)
        if layer:
            self.taken.add(layer)
        return layer

    def _layers_below(self, parent: str) -> list[str]:
        below = self.modules.below(parent)
        self.looks += len(below)
        return [name for name in below if self.modules.is_layer(name)]

    def _in_twin(self, norm: str) -> str | None:
        """Return the layer that stands in the module tree as the normalisation does: `convs.1` of `bns.1`, or the last
        one of `separable_1` of `bn_sep_1`.
        """
        parent, _, last = norm.rpartition(".")
        beside, _, container = parent.rpartition(".")
        twins: dict[str, list[str]] = defaultdict(list)  # container -> layers
        if POSITION.fullmatch(last) and _NORM_WORD.search(container):
            for layer in self._layers_below(beside):
                if layer.count(".") == norm.count(".") and last_part(layer) == last:
                    twins[layer.rpartition(".")[0]].append(layer)
        elif number := re.search("[0-9]+", last):
            depth = parent.count(".") + 1 if parent else 0
            for layer in self._layers_below(parent):
                container = layer.split(".", depth + 1)[depth]
                own = re.search("[0-9]+", container)
                if own and own.group() == number.group():
                    twins[container].append(layer)
        size = self.modules.size(norm)
        for layers in sorted(twins.values(), key=len):  # `bn1` goes with `conv1.6` rather than with `layer1.2.conv3`
            free = [n for n in layers if n not in self.taken and self.modules.outputs(n) == size]
            if free:
                return max(free, key=lambda name: (role(name), self.modules.in_order[name]))
        return None

    def _nearest(self, norm: str) -> str | None:
        """Return the nearest layer of a normalisation's size in the smallest part of the module tree that has one.

        A layer that has a normalisation already comes after those that have none.
        """
        size = self.modules.size(norm)
        parent, _, last = norm.rpartition(".")
        inside = self._layers_below(parent)
        beside = [n for n in inside if n.rpartition(".")[0] == parent]
        if "pre" in last and (after := [n for n in inside if self.modules.takes(n, size)]):
            return min(after, key=lambda layer: self.modules.in_order[layer])
        free = [n for n in beside if n not in self.taken]
        if found := self._choose(norm, free):
            return found
        if free and parent:
            return self._of_parts(norm, beside) or self._only(norm, inside)
        if found := self._choose(norm, [n for n in inside if n not in self.taken]):
            return found
        if norm.count(".") <= 1:  # the last normalisation of the model and its head
            heads = [n for n in self._layers_below("") if n.count(".") <= 1 and n not in self.taken]
            if found := self._choose(norm, heads):
                return found
        both = (n for n in inside if self.modules.outputs(n) == size and self.modules.takes(n, size))
        return self._closest(norm, both) or self._choose(norm, inside) or self._above(norm)

    def _of_parts(self, norm: str, beside: Sequence[str]) -> str | None:
        """Return the layer of whose output this and the other normalisations beside it each take a part: queries and
        values of a qkv. Otherwise shapes do not show which of the layers beside it is its own.
        """
        parent = norm.rpartition(".")[0]
        parts = [n for n in self.modules.norms if n.rpartition(".")[0] == parent and self.modules.has_statistics(n)]
        total = sum(map(self.modules.size, parts))
        return self._closest(norm, [n for n in beside if len(parts) > 1 and self.modules.outputs(n) >= total])

    def _only(self, norm: str, layers: Sequence[str]) -> str | None:
        """Return the layer that gives or takes as many channels as the normalisation has, where there is one alone."""
        size = self.modules.size(norm)
        fitting = [n for n in layers if size in self.modules.weight(n)[:2]]
        return fitting[0] if len(fitting) == 1 else None

    def _above(self, norm: str) -> str | None:
        parent = norm.rpartition(".")[0]
        while parent and self.looks <= _MAX_LOOKS:
            parent = parent.rpartition(".")[0]
            if found := self._choose(norm, self._layers_below(parent)):
                return found
        return None

    def _choose(self, norm: str, layers: Sequence[str]) -> str | None:
        """Return the closest layer that gives what the normalisation takes, or takes what it gives.

        A layer with a bias is the least likely one to be followed by a normalisation, which would undo it.
        """
        shapes, size = self.modules.shapes, self.modules.size(norm)
        gives = [n for n in layers if self.modules.outputs(n) == size]
        unbiased = [n for n in gives if f"{n}.bias" not in shapes]
        takes = [n for n in layers if self.modules.weight(n)[1] == size]
        return self._closest(norm, unbiased) or self._closest(norm, takes) or self._closest(norm, gives)

    def _closest(self, norm: str, layers: Iterable[str]) -> str | None:
        order = self.modules.in_order
        return min(layers, key=lambda layer: abs(order[layer] - order[norm]), default=None)
