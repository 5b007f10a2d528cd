"""K models that are trained independently of each other."""

from __future__ import annotations

from dataclasses import dataclass

from fedmr_merge.federated.algorithms.base import Algorithm, distinct_models
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State, Trained


@dataclass(frozen=True)
class Independent(Algorithm):
    """FedMR without recombination: each model is trained further by another client, as it is.

    This is the ablation "w/o MR" of Hu et al., "FedMR: Federated Learning via Model Recombination", 2022 (arXiv
    2208.07677). The clients of a round are in random order, so that a model that stays in its slot meets a random one.
    """

    @property
    def why_single_models(self) -> str:
        """Why the server must see the model of each client."""
        return "passes on every model as it is"

    def start(self, federation: Federation, previous: State) -> State:
        """Start from the K models, or from K copies of the global model."""
        return State(distinct_models(federation, previous), previous.global_weights)

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Keep the trained models, and average them, unweighted, into the global model."""
        mean = federation.mean(trained.cohort)
        return State(trained.cohort, mean.weights, metrics=mean.metrics)
