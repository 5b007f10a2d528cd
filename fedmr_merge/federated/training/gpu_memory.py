"""Estimate the memory of a GPU that clients need while they train, and how many of them it has room for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmr_merge.federated.cohort import weights_of
from fedmr_merge.federated.data.examples import on_meta
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.training.forward import Forward
from fedmr_merge.federated.training.options import Training

_MODELS = 4
"""A client has the model that it was sent, the one in training, its gradient, and a place for the result."""


@dataclass(frozen=True)
class MemoryForecast:
    """What a client needs, and what there is."""

    client_bytes: int  #: at the least, while one client trains
    free_bytes: int  #: on the GPU, with data and model already there
    clients: int  #: of a round

    @property
    def fitting(self) -> int:
        """How many of a round's clients fit at once, at the most; 0 where not even one does."""
        return min(self.clients, self.free_bytes // self.client_bytes)


def forecast_memory(federation: Federation, free_bytes: int) -> MemoryForecast:
    """Return what a client of the federation needs, beside so much free memory."""
    return MemoryForecast(client_bytes(federation), free_bytes, federation.slots)


def client_bytes(federation: Federation) -> int:
    """Return the bytes that a client needs in a local step, at the least.

    These are its models, the optimiser's memory of it, and what the forward pass of the largest batch keeps for the
    backward pass. What a method or an engine adds is not in it. Nothing is computed: the forward pass is one of tensors
    without values.
    """
    training = federation.training
    state = weights_of(federation.module)
    steps = {size for client in range(len(federation.partition)) for size in federation.epoch_step_sizes(client)}
    batch = max((max(federation.accumulated_sizes(size)) for size in steps), default=0)
    averages = 2 if training.optimizer != "sgd" else int(training.momentum > 0)
    models = [*state.values()] * _MODELS + [state[name] for name in federation.trainable] * averages
    return sum(int(tensor.nbytes) for tensor in models) + _kept_for_backward(federation, batch)


def _kept_for_backward(federation: Federation, batch: int) -> int:
    """Return the bytes that a forward pass of so many examples keeps, without the weights."""
    weights = {name: torch.empty_like(t, device="meta") for name, t in weights_of(federation.module).items()}
    for name in federation.trainable:
        weights[name].requires_grad_()
    # A frozen model that all clients share is none of these weights.
    module = deepcopy(federation.module).to("meta").train()
    shared: Sequence[Tensor] = getattr(module, "frozen", ())
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        data, targets = federation.data, federation.data.targets("train")
        outputs = Forward(module)(weights, on_meta(data.inputs("train", slice(0, 1)), batch))
        loss = federation.task.loss(data, Training())  # without weights of classes, which have values
        loss(outputs, torch.empty(batch, *targets.shape[1:], dtype=targets.dtype, device="meta"))
    return _storage_bytes(kept.values()) - _storage_bytes(
        tensor for tensor in (*weights.values(), *shared) if tensor.untyped_storage()._cdata in kept
    )


def _storage_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
