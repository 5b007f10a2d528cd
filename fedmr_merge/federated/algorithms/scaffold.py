"""Stochastic controlled averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms._client_memory import recall, remembering
from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.cohort import Cohort, Weights
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Batch, Context, State, Trained
from fedmr_merge.federated.training.forward import Forward


@dataclass(frozen=True)
class Scaffold(Algorithm):
    """Control variates correct the drift of the clients.

    Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", 2020 (ICML), algorithm 1,
    option II. The server has the control variate c and client i has c_i; all start at 0, and the c_i of a client is
    kept from its first round on. The paper's clients train without momentum: see `plain_steps`.
    """

    server_lr: Annotated[float, Gt(0)] = 1.0  #: η_g, the step of the server along the mean update of the clients

    @property
    def why_single_models(self) -> str:
        """Why the server must see the model of each client."""
        return "keeps a control variate of every client"

    def start(self, federation: Federation, previous: State) -> State:
        """Start from the global model, with control variates of 0."""
        optimizer, clip_norm = federation.training.optimizer, federation.training.clip_norm
        if clip_norm is not None:
            raise TrainingError(
                "scaffold's control variates are means of gradients, which clipped steps do not add up to",
                hint="leave training.clip_norm out",
            )
        if optimizer != "sgd":
            raise TrainingError(
                f"scaffold's control variates are means of gradients, which the steps of {optimizer} do not add up to",
                hint="set training.optimizer to sgd",
            )
        federation.architecture.require_mean_of_weights(self.name)
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
        """Return the cross-entropy, to whose gradient c − c_i is added (line 10)."""
        loss = super().objective(forward, weights, batch, context)
        terms = [(weights[name] * tensor).sum() for name, tensor in context.own["correction"].items()]
        linear = torch.stack(terms).sum()
        # Its gradient is the correction. Its value is taken off again: it is not a part of the loss that is reported.
        return loss + linear - linear.detach()

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Update c_i (line 12, option II), the model and c (lines 16 and 17); buffers take the clients' mean."""
        server, own = self._variates(federation, state, trained.clients)
        sent = state.global_weights
        scale = [trained.lr * self.plain_steps(federation, steps) for steps in trained.steps]
        moved = torch.tensor([bool(steps) for steps in trained.steps], device=federation.device)
        updated, total = {}, {}
        for name in server:
            shape = (-1, *[1] * sent[name].dim())
            # A client that took no step has nothing to divide by, and keeps its control variate.
            divisor = torch.tensor([s or 1.0 for s in scale], device=federation.device).view(shape)
            new = own[name] - server[name] + (sent[name] - trained.cohort.tensors[name]) / divisor
            updated[name] = torch.where(moved.view(shape), new, own[name])
            total[f"server/{name}"] = server[name] + (updated[name] - own[name]).sum(0) / len(federation.partition)
        mean = trained.cohort.mean()
        model = mean | {name: sent[name] + self.server_lr * (mean[name] - sent[name]) for name in server}
        memory = remembering(state.tensors, trained.clients, updated, trained.steps)
        return State.from_global(model, tensors={**memory, **total})

    def plain_steps(self, federation: Federation, steps: int) -> float:
        """Return how many steps of plain SGD move a model as far as `steps` with momentum β, for a constant gradient.

        The paper's clients have no momentum and divide by their number of steps; (x − y_i) divided by this number is a
        mean of gradients again. A step of Nesterov's momentum goes as far as the next one of plain momentum.
        """
        beta, ahead = federation.training.momentum, int(federation.training.nesterov)
        return sum((1 - beta ** (step + ahead)) / (1 - beta) for step in range(1, steps + 1))

    def _variates(
        self, federation: Federation, state: State, clients: tuple[int, ...]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return c, and c_i of these clients, stacked."""
        server = {name: state.tensors[f"server/{name}"] for name in federation.trainable}
        zeros = {name: torch.zeros_like(tensor) for name, tensor in server.items()}
        return server, recall(state.tensors, clients, zeros)
