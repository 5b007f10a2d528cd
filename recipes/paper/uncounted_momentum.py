"""SCAFFOLD as it is often programmed: as if clients that train with momentum did not."""

from __future__ import annotations

from dataclasses import dataclass

from fedmr_merge.federated.algorithms.scaffold import Scaffold
from fedmr_merge.federated.federation import Federation


@dataclass(frozen=True)
class UncountedMomentum(Scaffold):
    """Divides the way that a client went by its number of steps, whatever its momentum.

    With momentum β a client goes up to 1 / (1 − β) as far, so that the control variates are as many times too large.
    """

    def plain_steps(self, federation: Federation, steps: int) -> float:  # noqa: ARG002
        """Return the number of steps."""
        return steps
