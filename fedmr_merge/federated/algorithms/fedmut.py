"""Federated learning by mutated models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.cohort import Cohort, Weights
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State, Trained
from fedmr_merge.layers.rules import group_tensors

_MUTATIONS = "mutations"  # key of a state's facts: the number of rounds of this stage that ended with a mutation


@dataclass(frozen=True)
class FedMut(Algorithm):
    """Clients train mutants of the global model, which are moved along its last update or against it.

    Hu et al., "FedMut: Generalized Federated Learning via Stochastic Mutation", 2024 (AAAI), algorithm 1. Slot i gets
    w + v_i α Δ, layer by layer: Δ is the change of the global model w in the round, and v is 1 for one half of the
    slots and −1 + β for the other. β falls from β₀ to 0 in the first rounds of a stage; from then on the mean of the
    mutants is w. The global model is the unweighted mean of the trained models. Only trained tensors mutate; the
    buffers are those of w. The defaults are those of the authors' code.
    """

    radius: Annotated[float, Ge(0)] = 4.0  #: α, length of a mutation, in updates; 0 averages without mutation
    acceleration: Annotated[float, Ge(0), Le(1)] = (
        0.3  #: β₀, how much shorter mutations against the update are at first
    )
    acceleration_rounds: Annotated[int, Ge(1)] = 50  #: rounds until they are as long as those along the update
    rule: str = "layer"  #: the layer rule, which says which tensors mutate together

    @property
    def why_single_models(self) -> None:
        """None: mutants are made of the mean."""
        return None

    def start(self, federation: Federation, previous: State) -> State:
        """Start from K copies of the global model: before the first update there is nothing to mutate along."""
        federation.architecture.require_mean_of_weights(self.name)
        self._groups(federation, previous.global_weights)  # a rule that does not fit is reported before any training
        copies = Cohort.stack([previous.global_weights]).expand(federation.slots)
        return State(copies, previous.global_weights)

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Average the trained models and mutate the mean."""
        mean = trained.cohort.mean()
        slots = trained.cohort.slots
        mutants = {name: torch.stack([tensor] * slots) for name, tensor in mean.items()}
        mutations = int(state.facts.get(_MUTATIONS, 0))
        beta = self.acceleration * max(0.0, 1 - mutations / self.acceleration_rounds)
        for group, names in self._groups(federation, mean).items():
            directions = self._directions(federation, slots, round, group, beta)
            for name in names:
                update = mean[name] - state.global_weights[name]
                mutants[name] += self.radius * directions.to(update).view(-1, *[1] * update.dim()) * update
        return State(Cohort(mutants), mean, facts={_MUTATIONS: mutations + 1})

    def _groups(self, federation: Federation, weights: Weights) -> dict[str, list[str]]:
        """Return the trained tensors of every layer group."""
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        groups = group_tensors(self.rule, shapes, federation.layers)
        trainable = set(federation.trainable)
        return {group.name: [name for name in group.tensors if name in trainable] for group in groups}

    def _directions(self, federation: Federation, slots: int, round: int, group: str, beta: float) -> Tensor:
        """Return 1 for one half of the slots and −1 + β for the other, in random order; 0 for the odd one out."""
        directions = np.array([1.0, beta - 1.0] * (slots // 2) + [0.0] * (slots % 2))
        rng = federation.generator("mutation signs", round, group)
        return torch.from_numpy(rng.permutation(directions))
