"""Hold a part of a data set out for testing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmr_merge.seeds import generator


def hold_out(groups: NDArray[Any], share: float, purpose: str, *, carry_remainders: bool = False) -> NDArray[np.bool_]:
    """Choose which examples are held out: `share` of every group, rounded, the same ones for every seed of a run.

    Args:
        groups: The group of every example, a whole number from 0: its class, or its client.
        share: The share of the examples to hold out, between 0 and 1.
        purpose: What the draw is for; another purpose gives other examples.
        carry_remainders: Let what rounding takes from one group count for the next, so that many small groups together
            give their share, though a group of four may have none to give.

    Returns:
        For every example whether it is held out.
    """
    chosen = np.zeros(len(groups), dtype=np.bool_)
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups))
    carried = 0.0
    for group, members in enumerate(np.split(order, ends[:-1])):
        # A fixed seed: a run's own seed must not change what it is tested on.
        shuffled = generator(0, purpose, group).permutation(len(members))
        count = round(share * len(members) + carried)
        if carry_remainders:
            carried += share * len(members) - count
        chosen[members[shuffled[:count]]] = True
    return chosen
