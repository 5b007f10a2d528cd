"""The averaging that FedAvg shares with methods that change how clients train, and average in the same way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fedmr_merge.federated.algorithms._server_optimizer import ServerOptimizer
from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.cohort import Weights
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State, Trained


@dataclass(frozen=True)
class Averaging(Algorithm):
    """Clients train the global model; the mean of what they trained, weighted by examples, is the next global model."""

    server_optimizer: ServerOptimizer | None = field(default=None, kw_only=True)
    """How the server moves the global model along the clients' mean update; left out: to their mean."""

    def check(self) -> None:
        """Raise TrainingError for options that exclude each other."""
        if self.server_optimizer is not None:
            self.server_optimizer.check()

    @property
    def why_single_models(self) -> str | None:
        """None, unless a method aggregates in a way of its own."""
        return None if type(self).aggregate is Averaging.aggregate else super().why_single_models

    def start(self, federation: Federation, previous: State) -> State:
        """Start from the global model."""
        if self.server_optimizer is not None:
            federation.architecture.require_mean_of_weights("a server_optimizer")
        return State.from_global(previous.global_weights)

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Move to the weighted mean w ← Σ n_i w_i / Σ n_i over the selected clients; all else that is kept stays."""
        mean = federation.mean(trained.cohort, trained.examples, is_sent=True)
        model, moments = self.server_step(federation, state, mean.weights)
        state = State.from_global(model, tensors={**state.tensors, **moments}, facts=state.facts)
        return replace(state, metrics=mean.metrics)

    def server_step(self, federation: Federation, state: State, mean: Weights) -> tuple[Weights, Weights]:
        """Return the next global model, and what the server's optimiser remembers of it."""
        if self.server_optimizer is None:
            return mean, {}
        return self.server_optimizer.step(state.global_weights, mean, state.tensors, federation.trainable)
