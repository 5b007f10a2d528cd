"""K models that never meet."""

from __future__ import annotations

from dataclasses import dataclass

from fedmr_merge.federated.algorithms.base import Algorithm, distinct_models
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State, Trained


@dataclass(frozen=True)
class Independent(Algorithm):
    """FedMR without recombination, the paper's ablation "FedMR w/o MR": each model goes on at another client, unmixed.

    The clients of a round come in random order, so that keeping each model in its slot hands it on at random.
    """

    def start(self, federation: Federation, previous: State) -> State:
        """Go on from the K models, or from K copies of the global one."""
        return State(distinct_models(federation, previous), previous.global_weights)

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Keep the trained models; the global model is their unweighted mean."""
        return State(trained.cohort, trained.cohort.mean())
