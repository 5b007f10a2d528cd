"""Hold a part of a data set out for testing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmr_merge.seeds import generator


def hold_out(groups: NDArray[Any], share: float, purpose: str) -> NDArray[np.bool_]:
    """Return which examples are held out: `share` of every group, rounded, the same ones for every seed of a run.

    `groups` is the group of every example, a whole number from 0: its class, or its client.
    """
    chosen = np.zeros(len(groups), dtype=np.bool_)
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups))
    for group, members in enumerate(np.split(order, ends[:-1])):
        # A fixed seed: a run's own seed must not change what it is tested on.
        shuffled = generator(0, purpose, group).permutation(len(members))
        chosen[members[shuffled[: round(share * len(members))]]] = True
    return chosen
