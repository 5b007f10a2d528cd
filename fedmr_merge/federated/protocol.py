"""What a training method is: the state it keeps and the six things it decides.

A round, as `rounds.py` runs it:

    selected        = algorithm.select(federation, state, round)
    cohort, context = algorithm.dispatch(federation, state, selected)
    trained         = every client of `selected` trains the model of its slot on algorithm.objective(...)
    state           = algorithm.aggregate(federation, state, trained, round)

A method is a frozen dataclass in `algorithms/`; what differs between two runs of it are its options, what differs
between two rounds is its State. It keeps nothing anywhere else, never changes a tensor that it was given, and draws
only from `federation.generator(purpose, round, …)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedmr_merge.federated.cohort import Cohort, Weights
from fedmr_merge.federated.federation import Federation
from fedmr_merge.layers.plan import RecombinationPlan


@dataclass(frozen=True, eq=False)
class State:
    """All that a method remembers between two rounds. Saved and restored byte for byte."""

    cohort: Cohort  #: what the next round dispatches: 1 slot (every client gets it) or K slots
    global_weights: Weights  #: the model that is evaluated and published
    tensors: Weights = field(default_factory=dict)  #: whatever else the method keeps: control variates, a generator, …
    facts: Mapping[str, Any] = field(default_factory=dict)  #: and what is not a tensor; JSON values
    plan: RecombinationPlan | None = None
    """The plan by which this round recombined the trained models, if it did. It is recorded in the lineage of the run;
    the next round does not depend on it, and a checkpoint does not hold it."""

    @classmethod
    def from_global(
        cls, weights: Weights, *, tensors: Weights | None = None, facts: Mapping[str, Any] | None = None
    ) -> State:
        """Return the state of a method that has one model, which every client gets."""
        return cls(Cohort.stack([weights]), weights, tensors or {}, facts or {})

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

    images: Tensor  #: float32 [batch, channels, height, width], normalised
    labels: Tensor  #: int64 [batch]
    indices: Tensor  #: int64 [batch]: which training examples they are


class Context(NamedTuple):
    """What a method gives the clients beside the model, as families of tensors by name.

    In `dispatch` every tensor of `own` has the shape [K, ...]; an objective sees that of one client, [...].
    """

    shared: Mapping[str, Weights] = {}  #: the same for every client
    own: Mapping[str, Weights] = {}  #: each client its own


@dataclass(frozen=True, eq=False)
class Trained:
    """What comes back from the clients of a round; everything by slot."""

    cohort: Cohort  #: K trained models
    clients: tuple[int, ...]  #: the client that trained the model of slot i
    examples: tuple[int, ...]  #: how many examples that client holds
    steps: tuple[int, ...]  #: how many local steps it took
    losses: tuple[float, ...]  #: mean of the objective over the examples it went through; NaN where it took no step
    diverged: Mapping[int, str] = field(default_factory=dict)  #: client → what was wrong; see `divergence.py`


def initial_state(federation: Federation) -> State:
    """Return the state in front of the first stage: one randomly initialised model.

    One, also for methods that train K different models: these start as copies of it, as in the code of FedMR's
    authors. Layers of networks that were initialised apart do not fit each other (their hidden units are permuted),
    and the mean of such networks is no network.
    """
    weights = {name: tensor.detach().clone() for name, tensor in federation.module.state_dict().items()}
    return State.from_global(weights)
