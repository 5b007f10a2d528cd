"""Data whose examples are tensors that a model takes as they are: rows of features, sequences of tokens, and others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedmr_merge.federated.data.examples import Data, Inputs, Part


class Examples(NamedTuple):
    """The examples of a part: every tensor has the shape [examples, ...]."""

    inputs: Inputs
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> Examples:
        """Return the examples on a device."""
        return Examples(_each(self.inputs, lambda tensor: tensor.to(device)), self.targets.to(device))


@dataclass(frozen=True, eq=False, kw_only=True)
class TensorData(Data):
    """Training and test examples that need no more than to be picked."""

    train: Examples
    test: Examples  #: held out: never seen in training
    class_names: tuple[str, ...] = ()
    train_clients: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.train.targets.device

    def to(self, device: torch.device) -> TensorData:
        """Return the data on a device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def targets(self, part: Part) -> Tensor:
        """Return the targets of a part."""
        return self._of(part).targets

    def inputs(self, part: Part, where: Tensor | slice) -> Inputs:
        """Return examples of a part."""

        def picked(tensor: Tensor) -> Tensor:
            if isinstance(where, slice):
                return tensor[where]
            return tensor.index_select(0, where.flatten()).view(*where.shape, *tensor.shape[1:])

        return _each(self._of(part).inputs, picked)

    def _of(self, part: Part) -> Examples:
        return self.train if part == "train" else self.test


def _each(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    if isinstance(inputs, Tensor):
        return function(inputs)
    return {name: function(tensor) for name, tensor in inputs.items()}
