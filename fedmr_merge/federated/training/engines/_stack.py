"""The memory in which some models of a cohort are trained together, stacked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmr_merge.federated.cohort import Weights
from fedmr_merge.federated.protocol import Context
from fedmr_merge.federated.training.engines._step import sliced
from fedmr_merge.federated.training.local_training import LocalTraining
from fedmr_merge.federated.training.optimizers import Optimizer, new_optimizer

Families = Mapping[str, Weights]


@dataclass(frozen=True)
class Window:
    """The models `start` to `stop` - 1 of a stack, on which steps work: views, so that what they write is in it."""

    weights: dict[str, Tensor]
    parameters: list[Tensor]
    optimizer: Optimizer
    context: Context
    totals: Tensor  #: sums of losses over examples


class Stack:
    """Models, their optimiser's memory, what a method gave their clients, and their losses, [clients, ...].

    All of it stays at its addresses, whatever models are loaded: a recorded step reads and writes there.
    """

    def __init__(self, task: LocalTraining, clients: int) -> None:
        """Reserve memory for so many of a task's clients."""
        self._trainable = task.federation.trainable
        device = task.federation.device
        self.weights = _like(task.cohort.tensors, device, clients)
        self._shared = {family: _like(tensors, device) for family, tensors in task.context.shared.items()}
        self._own = {family: _like(tensors, device, clients) for family, tensors in task.context.own.items()}
        parameters = [self.weights[name] for name in self._trainable]
        self._optimizer = new_optimizer(task.federation.training, task.learning_rate, parameters, stacked=True)
        self.totals = torch.empty(clients, dtype=torch.float64, device=device)
        self._windows: dict[tuple[int, int], Window] = {}

    def load(self, task: LocalTraining, part: Sequence[int]) -> None:
        """Take the models of these slots, with what their clients were given; nothing has been trained yet.

        Those may be on another device.
        """
        rows = torch.tensor(part, device=task.cohort.device)
        with torch.no_grad():
            for ours, theirs in ((self.weights, task.cohort.tensors), *_pairs(self._own, task.context.own)):
                for name, tensor in theirs.items():
                    if tensor.device == self.totals.device:
                        torch.index_select(tensor, 0, rows, out=ours[name])
                    else:
                        ours[name].copy_(tensor.index_select(0, rows))
            for ours, theirs in _pairs(self._shared, task.context.shared):
                for name, tensor in theirs.items():
                    ours[name].copy_(tensor)
        for tensor in (*self._optimizer.memory, self.totals):
            tensor.zero_()

    def window(self, start: int, stop: int) -> Window:
        """Return the models `start` to `stop` - 1."""
        window = self._windows.get((start, stop))
        if window is None:
            weights = {name: tensor[start:stop] for name, tensor in self.weights.items()}
            parameters = [weights[name].requires_grad_() for name in self._trainable]
            context = Context(self._shared, sliced(self._own, start, stop))
            optimizer = self._optimizer.window(start, stop)
            window = Window(weights, parameters, optimizer, context, self.totals[start:stop])
            self._windows[start, stop] = window
        return window

    @contextmanager
    def spared(self, start: int, stop: int) -> Iterator[None]:
        """Let steps in the block train the models `start` to `stop` - 1 to no effect."""
        rows = [t[start:stop] for t in (*self.weights.values(), *self._optimizer.memory, self.totals)]
        before = [tensor.clone() for tensor in rows] if start < stop else []
        yield
        with torch.no_grad():
            for tensor, value in zip(rows, before, strict=False):
                tensor.copy_(value)


def _like(tensors: Weights, device: torch.device, clients: int | None = None) -> dict[str, Tensor]:
    """Return memory on a device for such tensors, or for those of so many clients in place of all."""
    shapes = {
        name: tensor.shape if clients is None else (clients, *tensor.shape[1:]) for name, tensor in tensors.items()
    }
    return {name: torch.empty(shapes[name], dtype=tensor.dtype, device=device) for name, tensor in tensors.items()}


def _pairs(ours: Mapping[str, dict[str, Tensor]], theirs: Families) -> Iterator[tuple[dict[str, Tensor], Weights]]:
    return ((ours[family], tensors) for family, tensors in theirs.items())
