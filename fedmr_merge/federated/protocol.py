"""The values that a training method is given and returns: its state, what it dispatches, and what comes back.

`rounds.py` runs a round like this:

    selected        = algorithm.select(federation, state, round)
    cohort, context = algorithm.dispatch(federation, state, selected)
    trained         = every client of `selected` trains the model of its slot on algorithm.objective(...)
    state           = algorithm.aggregate(federation, state, trained, round)

`algorithms/base.py` has the base class of the methods. What differs between two runs of a method are its options; what
differs between two rounds is its State.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedmr_merge.federated.cohort import Cohort, Weights, weights_of
from fedmr_merge.federated.data.examples import Inputs
from fedmr_merge.federated.federation import Federation
from fedmr_merge.layers.plan import RecombinationPlan


@dataclass(frozen=True, eq=False)
class State:
    """Everything that a method remembers between two rounds. It is saved and restored byte for byte."""

    cohort: Cohort  #: the models that the next round dispatches: 1 slot (every client gets it) or K slots
    global_weights: Weights  #: the model that is evaluated and published
    tensors: Weights = field(
        default_factory=dict
    )  #: all other tensors that the method keeps: control variates, a generator, …
    facts: Mapping[str, Any] = field(
        default_factory=dict
    )  #: what the method keeps that is not a tensor, as JSON values
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the aggregation, or the beginning of a stage, measured of itself. It is recorded with the round, and not
    saved."""
    plan: RecombinationPlan | None = None
    """The plan by which this round recombined the trained models, if it did. It is recorded in the lineage of the run;
    the next round does not depend on it, and a checkpoint does not hold it."""

    @classmethod
    def from_global(
        cls, weights: Weights, *, tensors: Weights | None = None, facts: Mapping[str, Any] | None = None
    ) -> State:
        """Return the state of a method that has one model, which every client gets."""
        cohort = Cohort({name: tensor.contiguous().unsqueeze(0) for name, tensor in weights.items()})
        return cls(cohort, weights, tensors or {}, facts or {})

    def to(self, device: torch.device) -> State:
        """Return the state on a device."""
        return replace(
            self,
            cohort=self.cohort.to(device),
            global_weights={name: tensor.to(device) for name, tensor in self.global_weights.items()},
            tensors={name: tensor.to(device) for name, tensor in self.tensors.items()},
        )


class Batch(NamedTuple):
    """The examples of one local step."""

    inputs: Inputs  #: what the model is fed with, e.g. float32 [batch, channels, height, width], normalised
    targets: Tensor  #: [batch, ...]: what it is to predict; int64 [batch] where these are classes
    indices: Tensor  #: int64 [batch]: which training examples they are


class Context(NamedTuple):
    """The tensors that a method gives the clients beside the model, as families of tensors by name.

    In `dispatch` every tensor of `own` has the shape [K, ...]; an objective sees that of one client, [...].
    """

    shared: Mapping[str, Weights] = {}  #: the same for every client
    own: Mapping[str, Weights] = {}  #: different for each client


@dataclass(frozen=True, eq=False)
class Trained:
    """What comes back from the clients of a round, by slot."""

    cohort: Cohort  #: K trained models
    clients: tuple[int, ...]  #: the client that trained the model of slot i
    examples: tuple[int, ...]  #: the number of examples that this client holds
    steps: tuple[int, ...]  #: the number of local steps that it took
    losses: tuple[float, ...]  #: mean of the objective over the examples it went through; NaN where it took no step
    lr: float  #: η, the learning rate of their steps
    diverged: Mapping[int, str] = field(default_factory=dict)  #: client → what went wrong; see `divergence.py`
    absent: tuple[int, ...] = ()  #: the selected clients that did not answer; see `participation.py`
    asked: tuple[int, ...] = ()  #: the client of every slot of the round, whether it counts or not
    missing: Mapping[int, str] = field(default_factory=dict)  #: client on another machine → why it did not answer
    report: Mapping[str, Any] | None = None  #: what the engine records of the round, as JSON values

    def of_slots(self, slots: Sequence[int]) -> Trained:
        """Return what came back from the clients of these slots alone."""
        return replace(
            self,
            cohort=self.cohort.of_slots(slots),
            clients=tuple(self.clients[slot] for slot in slots),
            examples=tuple(self.examples[slot] for slot in slots),
            steps=tuple(self.steps[slot] for slot in slots),
            losses=tuple(self.losses[slot] for slot in slots),
        )


def initial_state(federation: Federation) -> State:
    """Return the state before the first stage: one randomly initialised model.

    Methods that train K different models start from K copies of it, as in the code of FedMR's authors. The layers of
    networks that were initialised apart do not fit each other (their hidden units are permuted), and the mean of such
    networks classifies nothing.
    """
    weights = {name: tensor.detach().clone() for name, tensor in weights_of(federation.module).items()}
    return State.from_global(weights)
