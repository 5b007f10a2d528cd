"""What FedAvg shares with the methods that change how clients train and average as it does."""

from __future__ import annotations

from dataclasses import dataclass

from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State, Trained


@dataclass(frozen=True)
class Averaging(Algorithm):
    """Clients train the global model; their mean, weighted by examples, is the next one."""

    def start(self, federation: Federation, previous: State) -> State:
        """Go on from the global model."""
        return State.from_global(previous.global_weights)

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Return the weighted mean w ← Σ n_i w_i / Σ n_i over the selected clients; what else is kept stays."""
        mean = trained.cohort.mean(weights=trained.examples)
        return State.from_global(mean, tensors=state.tensors, facts=state.facts)
