"""The base class of training methods. `protocol.py` describes a round and the values that a method is given.

A method never changes a tensor that it was given, keeps nothing but its State, and draws only from
`federation.generator(purpose, round, …)`. Its docstring cites the paper; its fields are the paper's symbols.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
    """A training method. Its fields are its options; the methods defined here are those of FedAvg and its relatives.

    A method must define `start` and `aggregate`; it may override the others.
    """

    selection: Literal["uniform", "by_size", "round_robin", "by_loss"] = field(default="uniform", kw_only=True)
    """How the clients of a round are selected; `fedmr-merge docs methods` explains the choices."""

    def check(self) -> None:
        """Raise TrainingError for options that exclude each other. Called before the first round of a run."""

    def start(self, federation: Federation, previous: State) -> State:
        """Return the state that a stage of this method starts from.

        `previous` is the state at the end of the stage before, or `initial_state` at the beginning of a run. What the
        method of that stage kept in `tensors` and `facts` must not be used.
        """
        raise NotImplementedError

    @property
    def samples_uniformly(self) -> bool:
        """Whether the clients of a round are drawn uniformly, so that who took part is hidden in the crowd."""
        return self.selection == "uniform" and type(self).select is Algorithm.select

    @property
    def why_single_models(self) -> str | None:
        """Why the server must see the model of each client, a verb phrase; None where the mean of all is enough.

        With `training.privacy` of kind central, `aggregate` is given that mean in every slot, or the method is refused.
        """
        return "may need the model of each client"

    def select(self, federation: Federation, state: State, round: int) -> tuple[int, ...]:
        """Return the K clients of a round, in random order: the model of slot i goes to the i-th client."""
        return SELECTIONS[self.selection](federation, state.global_weights, round)

    def dispatch(self, federation: Federation, state: State, selected: tuple[int, ...]) -> tuple[Cohort, Context]:
        """Return the K models that the selected clients get, by slot, and what else the objective needs."""
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

        It may use only operations that `torch.func.vmap` can map: no branch on the value of a tensor, no `.item()`, no
        random draw.
        """
        return forward.loss(forward(weights, batch.inputs), batch.targets)

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Return the next state, made from what the clients of a round trained."""
        raise NotImplementedError


def distinct_models(federation: Federation, previous: State) -> Cohort:
    """Return the K models that a stage starts from: those of the stage before, or K copies of its global model.

    Raises TrainingError when the stage before ended with several models, but not with K.
    """
    if previous.cohort.slots == federation.slots:
        return previous.cohort
    if previous.cohort.slots != 1:
        raise TrainingError(
            f"{previous.cohort.slots} models cannot be dispatched to {federation.slots} clients per round",
            hint="set training.clients_per_round to the number of models",
        )
    return previous.cohort.expand(federation.slots)
