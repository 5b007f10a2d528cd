"""The averaging that FedAvg shares with methods that change how clients train, and average in the same way."""

from __future__ import annotations

from dataclasses import dataclass

from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State, Trained


@dataclass(frozen=True)
class Averaging(Algorithm):
    """Clients train the global model; the mean of what they trained, weighted by examples, is the next global model."""

    def start(self, federation: Federation, previous: State) -> State:
        """Start from the global model."""
        return State.from_global(previous.global_weights)

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Return the weighted mean w ← Σ n_i w_i / Σ n_i over the selected clients; all else that is kept stays."""
        mean = trained.cohort.mean(weights=trained.examples)
        return State.from_global(mean, tensors=state.tensors, facts=state.facts)
