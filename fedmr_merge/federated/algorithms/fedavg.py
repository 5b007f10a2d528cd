"""Federated averaging."""

from __future__ import annotations

from dataclasses import dataclass

from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Algorithm, State, Trained


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """Clients train the global model; their mean, weighted by examples, is the next one.

    McMahan et al. 2017 (AISTATS), algorithm 1.
    """

    def start(self, federation: Federation, previous: State) -> State:
        """Go on from the global model."""
        return State(Cohort.stack([previous.global_weights]), previous.global_weights)

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> tuple[State, None]:
        """Return the weighted mean w ← Σ n_i w_i / Σ n_i over the selected clients."""
        mean = trained.cohort.mean(weights=trained.examples)
        return State(Cohort.stack([mean]), mean), None
