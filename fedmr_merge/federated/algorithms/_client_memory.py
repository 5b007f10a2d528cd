"""The memory that a method keeps of the clients that took part: one tensor for each client and name in a State."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedmr_merge.federated.cohort import Weights


def recall(memory: Weights, clients: Sequence[int], otherwise: Weights) -> dict[str, Tensor]:
    """Return what is kept of these clients, stacked [K, ...], and `otherwise` for clients of which nothing is kept."""
    return {
        name: torch.stack([memory.get(_key(client, name), tensor) for client in clients])
        for name, tensor in otherwise.items()
    }


def remembering(
    memory: Weights, clients: Sequence[int], stacked: Mapping[str, Tensor], steps: Sequence[int]
) -> dict[str, Tensor]:
    """Return a memory that also holds row i of `stacked` for the i-th client, if that client took a step."""
    new = {
        # A copy: a view would keep the whole stack in memory.
        _key(client, name): tensor[slot].clone()
        for slot, client in enumerate(clients)
        if steps[slot]
        for name, tensor in stacked.items()
    }
    return {**memory, **new}


def _key(client: int, name: str) -> str:
    return f"client/{client:05d}/{name}"
