"""A part of every client's examples that is held out of training, to decide by: so that no stage ends on test data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.partition import Indices, Partition


def divide(
    partition: Partition, share: float, generator: Callable[[int], np.random.Generator]
) -> tuple[Partition, tuple[Indices, ...]]:
    """Return what is left for training, and for every client the examples that are held out, ascending.

    They are `share` of its examples, rounded, and one at least; a client with a single example has none. `generator`
    returns the random generator of a client. Raises DataError when no client has any.
    """
    kept, held_out = [], []
    for client, indices in enumerate(partition.clients):
        count = min(len(indices) - 1, max(1, round(share * len(indices))))
        chosen = np.zeros(len(indices), dtype=np.bool_)
        chosen[generator(client).permutation(len(indices))[:count]] = True
        kept.append(indices[~chosen])
        held_out.append(indices[chosen])
    if not any(len(indices) for indices in held_out):
        raise DataError(
            "training.validation_share: every client has a single example, and none can be held out",
            hint="leave training.validation_share out, or take fewer clients",
        )
    return Partition.of(kept), tuple(held_out)
