"""What a training method is: the base of the plug-ins in this folder. `protocol.py` has the values they exchange."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Cohort, Weights
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.plugin import Plugin
from fedmr_merge.federated.protocol import Batch, Context, State, Trained
from fedmr_merge.federated.selection import SELECTIONS
from fedmr_merge.federated.training.forward import Forward


@dataclass(frozen=True)
class Algorithm(Plugin):
    """Base of the methods in `algorithms/`. What is defined here is what FedAvg and its relatives share."""

    selection: Literal["uniform", "by_size", "round_robin", "by_loss"] = field(default="uniform", kw_only=True)
    """How the clients of a round are chosen: see `selection.py`."""

    def start(self, federation: Federation, previous: State) -> State:
        """Return the state a stage of this method starts from.

        `previous` is where the stage before ended, or `initial_state` at the beginning of a run; what that method
        kept in `tensors` and `facts` is not for this one.
        """
        raise NotImplementedError

    def select(self, federation: Federation, state: State, round: int) -> tuple[int, ...]:
        """Return the K clients of a round, in random order; slot i goes to the i-th. All different, as a rule."""
        return SELECTIONS[self.selection](federation, state.global_weights, round)

    def dispatch(self, federation: Federation, state: State, selected: tuple[int, ...]) -> tuple[Cohort, Context]:
        """Return the K models that the selected clients get, by slot, and what else they need."""
        cohort = state.cohort
        return (cohort.expand(len(selected)) if cohort.slots == 1 else cohort), Context()

    def attachments(self, federation: Federation, state: State, context: Context) -> tuple[Context, Context]:
        """Return what travels beside the models of a round, to the clients and back; it is counted, not sent.

        By default the whole context goes to the clients, and nothing comes back beside the trained models. A method
        whose clients have a part of the context already, or that get another one back, says so here.
        """
        return context, Context()

    def objective(self, forward: Forward, weights: Weights, batch: Batch, context: Context) -> Tensor:
        """Return the loss of one client's model on one batch, a scalar: a pure function of its arguments.

        Only operations that `torch.func.vmap` can map: no branch on a tensor's value, no `.item()`, no random draw.
        """
        return F.cross_entropy(forward(weights, batch.images), batch.labels)

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Return the next state, made from what the clients of a round trained."""
        raise NotImplementedError


def distinct_models(federation: Federation, previous: State) -> Cohort:
    """Return the K models that a stage starts from: those of the previous stage, or K copies of its global model.

    Raises TrainingError when the previous stage ended with several models, but not K.
    """
    if previous.cohort.slots == federation.slots:
        return previous.cohort
    if previous.cohort.slots != 1:
        raise TrainingError(
            f"{previous.cohort.slots} models cannot be dispatched to {federation.slots} clients per round",
            hint="set training.clients_per_round to the number of models",
        )
    return previous.cohort.expand(federation.slots)
