"""The batches of a local epoch: how many examples each holds, and what becomes of a last one that cannot be trained on.

A batch normalisation needs more than one value per channel. Where a model shrinks its images to one pixel, it cannot
train on a batch of a single example, with which the epoch of a client may end.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from fedmr_merge.federated.data.examples import Inputs

LastBatch = Literal["keep", "drop", "merge"]


def batch_sizes(examples: int, batch_size: int, last_batch: LastBatch) -> tuple[int, ...]:
    """Return how many examples each batch of an epoch holds, for a client of so many examples.

    All batches are full, except for the last one. Where that would hold a single example, `keep` keeps it, `drop`
    leaves it out, and `merge` adds the example to the batch before; where there is no batch before, it is left out.
    """
    full, left = divmod(examples, batch_size)
    if left == 1 and last_batch != "keep":
        if last_batch == "drop" or not full:
            return (batch_size,) * full
        return (*(batch_size,) * (full - 1), batch_size + 1)
    return (*(batch_size,) * full, left) if left else (batch_size,) * full


def step_sizes(batches: Sequence[int], accumulated: int) -> tuple[int, ...]:
    """Return how many examples each step takes, where so many batches make one; the last may have fewer batches."""
    return tuple(sum(batches[first : first + accumulated]) for first in range(0, len(batches), accumulated))


def clients_with_a_lone_example(sizes: Sequence[int], batch_size: int) -> tuple[int, ...]:
    """Return the clients whose epochs would end with a batch of a single example."""
    return tuple(client for client, size in enumerate(sizes) if batch_sizes(size, batch_size, "keep")[-1] == 1)


def trains_on_one_example(module: nn.Module, example: Inputs) -> bool:
    """Return whether a module in training mode takes a batch of one; `example` is such a batch."""
    first = example if isinstance(example, Tensor) else next(iter(example.values()))
    devices = [first.device] if first.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            copy = deepcopy(module).train()
            copy(example) if isinstance(example, Tensor) else copy(**example)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            return False
    return True
