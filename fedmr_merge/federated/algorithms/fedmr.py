"""Federated learning by model recombination."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Le

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.base import Algorithm, distinct_models
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State, Trained
from fedmr_merge.layers.plan import LayerGroup, draw_plan
from fedmr_merge.layers.rules import group_tensors

_STATISTICS = "buffers"


@dataclass(frozen=True)
class FedMR(Algorithm):
    """K models train at K clients, and then each of their layers is shuffled among the K models.

    Hu et al., "FedMR: Federated Learning via Model Recombination", 2022 (arXiv 2208.07677), algorithm 1. The global
    model is the unweighted mean of the trained models (eq. 5). It is only evaluated and published: no client trains it.
    """

    rule: str = "layer"  #: the layer rule, which says which tensors move together
    probability: Annotated[float, Ge(0), Le(1)] = (
        1.0  #: probability of shuffling a layer group; otherwise it stays in its slot
    )
    buffers: Literal["follow_layer", "average", "keep"] = "follow_layer"
    """Where the statistics of a normalisation go: with their layer, to every slot as their mean, or nowhere."""

    @property
    def why_single_models(self) -> str:
        """Why the server must see the model of each client."""
        return "passes on the layers of single models"

    def start(self, federation: Federation, previous: State) -> State:
        """Start from the K models, or from K copies of the global model (the two-stage training of the paper)."""
        if federation.slots < 2:
            raise TrainingError(
                "fedmr recombines at least 2 models, but 1 client per round trains 1",
                hint="set training.clients_per_round to 2 or more",
            )
        cohort = distinct_models(federation, previous)
        self._groups(federation, cohort)  # a rule that does not fit the model is reported before any training
        return State(cohort, previous.global_weights)

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Average the trained models into the global model (eq. 5), and recombine them (lines 8 and 9)."""
        groups, mean = self._groups(federation, trained.cohort), federation.mean(trained.cohort)
        plan = draw_plan(groups, trained.cohort.slots, seed=federation.seed, round=round, probability=self.probability)
        recombined = trained.cohort.recombined(plan, groups)
        if self.buffers == "average":
            recombined = recombined.with_tensors({name: mean.weights[name] for name in _buffers(federation)})
        return State(recombined, mean.weights, metrics=mean.metrics, plan=plan)

    def _groups(self, federation: Federation, cohort: Cohort) -> tuple[LayerGroup, ...]:
        """Return the layer groups. Buffers that do not follow their layer are a group of their own, which stays."""
        groups = group_tensors(self.rule, cohort.shapes, federation.layers)
        buffers = _buffers(federation)
        if self.buffers == "follow_layer" or not buffers:
            return groups
        parted = [
            replace(group, tensors=tuple(name for name in group.tensors if name not in buffers)) for group in groups
        ]
        return (*(group for group in parted if group.tensors), LayerGroup(_STATISTICS, buffers, pinned=True))


def _buffers(federation: Federation) -> tuple[str, ...]:
    saved = federation.module.state_dict()
    return tuple(name for name, _ in federation.module.named_buffers() if name in saved)
