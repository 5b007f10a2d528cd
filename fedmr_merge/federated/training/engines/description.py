"""What an engine does with a federation, in words: which GPUs train what, and how a model's operations are stacked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fedmr_merge.federated.cohort import Weights, weights_of
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.training.engines._stacked import StackedOperations
from fedmr_merge.federated.training.engines._stacked_rules import RULES
from fedmr_merge.federated.training.engines._step import own_draws


def describe_devices(federation: Federation) -> str | None:
    """Return one line that says which of several GPUs train what; None where there is one.

    How many clients are trained together decides how sums round, not on which GPU they are.
    """
    there, used = len(federation.devices), len(federation.training_devices)
    if there == 1:
        return None
    if used == 1:
        option = "training.engine loop" if federation.engine == "loop" else "training.compile"
        return f"with {option}, clients train on one of the {there} GPUs"
    at_once = federation.clients_at_once
    parts = f"{there} GPUs, each of which trains {at_once} of the {federation.slots} clients of a round at a time"
    if federation.training.cohort_chunk is not None:
        return f"{parts}: the bytes are those of one GPU"
    return f"{parts}: the bytes are those of one GPU with training.cohort_chunk {at_once}"


def describe_operations(federation: Federation) -> str | None:
    """Return one line that says which operations with weights engine `vmap` computes in which way; None for others."""
    if federation.engine != "vmap":
        return None
    if federation.training.compile:
        return "engine vmap: torch.func.vmap maps all operations, and torch.compile compiles what comes of it"
    written, mapped = (", ".join(sorted(names)) for names in _operations_with_weights(federation))
    parts = (f"written out for all clients: {written}", f"mapped by torch.func.vmap: {mapped}")
    return "engine vmap: " + "; ".join(part for part, names in zip(parts, (written, mapped), strict=True) if names)


def _operations_with_weights(federation: Federation) -> tuple[set[str], set[str]]:
    """Return the names of the functions that are given weights in a forward pass: those with a rule, and others."""
    forward, inputs = federation.new_training_forward(), federation.data.inputs("train", slice(0, 2))
    stacked = {name: torch.stack([tensor, tensor]) for name, tensor in weights_of(federation.module).items()}
    watching = _Watching()

    def watched(weights: Weights) -> Tensor:
        with watching.given(weights):
            return forward(weights, inputs)

    with own_draws(federation), torch.no_grad():
        vmap(watched, randomness="different")(stacked)
    return watching.written, watching.mapped


class _Watching(StackedOperations):
    """Takes down the functions that are given weights."""

    def __init__(self) -> None:
        super().__init__()
        self.written: set[str] = set()
        self.mapped: set[str] = set()
        self._weights: list[Tensor] = []

    def given(self, weights: Weights) -> _Watching:
        """Take these for the weights."""
        self._weights = [tensor for tensor in weights.values() if tensor.is_floating_point()]
        return self

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Compute an operation."""
        if any(value is weight for value in (*args, *(kwargs or {}).values()) for weight in self._weights):
            name = getattr(function, "__name__", str(function))
            if not name.startswith("__"):  # reading an attribute
                (self.written if function in RULES else self.mapped).add(name)
        return super().__torch_function__(function, types, args, kwargs)
