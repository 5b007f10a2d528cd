"""Start a run from given models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedmr_merge.errors import Difference, LayerMismatchError, TrainingError
from fedmr_merge.federated.cohort import Cohort, Weights, weights_of
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State


def initial_state_from(federation: Federation, checkpoints: Sequence[Weights], names: Sequence[str]) -> State:
    """Return the state before the first stage: one model for all clients, or K models for the K slots.

    The global model of K is their unweighted mean. `names` are what messages call the checkpoints. Every tensor of
    the federation's model must be there with its shape and kind of number, and no other; floating-point tensors are
    cast to the model's precision.

    Raises TrainingError for another number of models, LayerMismatchError with every difference when one does not fit.
    """
    if len(checkpoints) not in (1, federation.slots):
        raise TrainingError(
            f"{len(checkpoints)} models cannot be dispatched to {federation.slots} clients per round",
            hint="start from 1 model, or set training.clients_per_round to the number of models",
        )
    expected = {name: tensor.detach() for name, tensor in weights_of(federation.module).items()}
    # Slot 0 of the messages is the architecture itself, which has no path.
    differences = [
        difference
        for slot, weights in enumerate(checkpoints, start=1)
        for difference in _differences(slot, expected, weights)
    ]
    if differences:
        raise LayerMismatchError(differences, [f"model {federation.architecture.name}", *names])
    cohort = Cohort.stack([_cast(weights, expected) for weights in checkpoints])
    if cohort.slots == 1:
        return State.from_global({name: tensor.clone() for name, tensor in cohort.slot(0).items()})
    return State(cohort, federation.mean(cohort).weights)


def _differences(slot: int, expected: Weights, found: Weights) -> list[Difference]:
    return [
        Difference(slot, name, _signature(expected.get(name)), _signature(found.get(name)))
        for name in sorted({*expected, *found})
        if _shape_and_kind(expected.get(name)) != _shape_and_kind(found.get(name))
    ]


def _shape_and_kind(tensor: Tensor | None) -> tuple[object, ...] | None:
    if tensor is None:
        return None
    return tuple(tensor.shape), "float" if tensor.is_floating_point() else tensor.dtype


def _signature(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _cast(weights: Weights, expected: Weights) -> dict[str, Tensor]:
    # In the model's own order of tensors, which a file need not keep.
    return {
        name: weights[name].to(device=tensor.device, dtype=tensor.dtype, memory_format=torch.contiguous_format)
        for name, tensor in expected.items()
    }
