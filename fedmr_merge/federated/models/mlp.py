"""A multilayer perceptron, for rows of features."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor, nn

from fedmr_merge.federated.models.base import Architecture, Classifier

Width = Annotated[int, Ge(1), Le(65_536)]


@dataclass(frozen=True)
class Mlp(Architecture):
    """Linear layers with ReLUs between them, as torch initialises them; without hidden layers it is a linear model."""

    hidden: tuple[Width, ...] = (64, 32)  #: the widths of the hidden layers

    takes = "features"

    def build(self, shape: tuple[int], outputs: int) -> Classifier:
        """Return the module; `features` are the activations of the last hidden layer."""
        return _Mlp((*shape, *self.hidden), outputs)


class _Mlp(Classifier):
    def __init__(self, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(width, following) for width, following in pairwise(widths))
        self.out = nn.Linear(widths[-1], outputs)

    def features(self, rows: Tensor) -> Tensor:
        for layer in self.hidden:
            rows = layer(rows).relu()
        return rows

    def head(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.out(features)
        return outputs
