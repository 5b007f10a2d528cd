"""Which selected clients answer, and which take fewer steps: drawn from the run's seed for every round.

A client that does not answer takes no step, and nothing of it is remembered. Where every client gets the global model,
those that answered are averaged without it; where every slot has a model of its own, its slot keeps the model that was
dispatched. A round in which nobody answers changes no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le


@dataclass(frozen=True)
class Stragglers:
    """The clients that take at most so many local steps in a round."""

    share: Annotated[float, Gt(0), Le(1)]  #: of the clients of a round, drawn anew in each
    steps: Annotated[int, Ge(1), Le(100_000)]  #: that a straggler takes at most


def draw_absent(availability: float, clients: int, rng: np.random.Generator) -> tuple[bool, ...]:
    """Return for every slot of a round whether its client does not answer."""
    return tuple((rng.random(clients) >= availability).tolist())


def draw_stragglers(stragglers: Stragglers, clients: int, rng: np.random.Generator) -> tuple[bool, ...]:
    """Return for every slot of a round whether its client is a straggler; their number is rounded, halves up."""
    count = int(stragglers.share * clients + 0.5)
    chosen = set(rng.permutation(clients)[:count].tolist())
    return tuple(slot in chosen for slot in range(clients))
