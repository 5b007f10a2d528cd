"""Stochastic controlled averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from fedmr_merge.federated.algorithms._client_memory import recall, remembering
from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.cohort import Cohort, Weights
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Batch, Context, State, Trained
from fedmr_merge.federated.training.forward import Forward


@dataclass(frozen=True)
class Scaffold(Algorithm):
    """Control variates correct the drift of clients (Karimireddy et al. 2020, ICML, algorithm 1, option II).

    c is the server's control variate, c_i a client's; both start at 0. A client's is kept from its first round on.
    """

    server_lr: Annotated[float, Gt(0)] = 1.0  #: η_g, how far the server follows the clients' mean update

    def start(self, federation: Federation, previous: State) -> State:
        """Go on from the global model, with no control variates."""
        zeros = {f"server/{name}": torch.zeros_like(previous.global_weights[name]) for name in federation.trainable}
        return State.from_global(previous.global_weights, tensors=zeros)

    def dispatch(self, federation: Federation, state: State, selected: tuple[int, ...]) -> tuple[Cohort, Context]:
        """Send the global model, and c − c_i to each client."""
        cohort, _ = super().dispatch(federation, state, selected)
        server, own = self._variates(federation, state, selected)
        return cohort, Context(own={"correction": {name: server[name] - own[name] for name in server}})

    def attachments(self, federation: Federation, state: State, context: Context) -> tuple[Context, Context]:
        """Return the control variates: c goes to each client, which sends back the change of its c_i."""
        return context, context

    def objective(self, forward: Forward, weights: Weights, batch: Batch, context: Context) -> Tensor:
        """Return the cross-entropy, with a gradient that has c − c_i added to it (line 10)."""
        loss = super().objective(forward, weights, batch, context)
        terms = [(weights[name] * tensor).sum() for name, tensor in context.own["correction"].items()]
        linear = torch.stack(terms).sum()
        # Its gradient is the correction; its value would only blur the loss that is reported.
        return loss + linear - linear.detach()

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Update c_i (line 12, option II), the model and c (lines 16 and 17); buffers take the clients' mean."""
        server, own = self._variates(federation, state, trained.clients)
        sent = state.global_weights
        scale = [federation.training.lr * _steps_without_momentum(federation, steps) for steps in trained.steps]
        moved = torch.tensor([bool(steps) for steps in trained.steps], device=federation.device)
        updated, total = {}, {}
        for name in server:
            shape = (-1, *[1] * sent[name].dim())
            # A client that took no step has nothing to divide by, and keeps what it had.
            divisor = torch.tensor([s or 1.0 for s in scale], device=federation.device).view(shape)
            new = own[name] - server[name] + (sent[name] - trained.cohort.tensors[name]) / divisor
            updated[name] = torch.where(moved.view(shape), new, own[name])
            total[f"server/{name}"] = server[name] + (updated[name] - own[name]).sum(0) / len(federation.partition)
        mean = trained.cohort.mean()
        model = mean | {name: sent[name] + self.server_lr * (mean[name] - sent[name]) for name in server}
        memory = remembering(state.tensors, trained.clients, updated, trained.steps)
        return State.from_global(model, tensors={**memory, **total})

    def _variates(
        self, federation: Federation, state: State, clients: tuple[int, ...]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return c, and c_i of these clients, stacked."""
        server = {name: state.tensors[f"server/{name}"] for name in federation.trainable}
        zeros = {name: torch.zeros_like(tensor) for name, tensor in server.items()}
        return server, recall(state.tensors, clients, zeros)


def _steps_without_momentum(federation: Federation, steps: int) -> float:
    """Return how many steps of plain SGD go as far as `steps` with momentum β do on one and the same gradient.

    The paper's clients have no momentum and divide by K; (x − y_i) over this number is a mean of gradients again.
    """
    beta = federation.training.momentum
    return sum((1 - beta**step) / (1 - beta) for step in range(1, steps + 1))
