"""Federated learning by model recombination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Algorithm, State, Trained, distinct_models
from fedmr_merge.recombination.plan import LayerGroup, RecombinationPlan, draw_plan
from fedmr_merge.recombination.recombine import recombine_stacked
from fedmr_merge.recombination.rules import group_tensors


@dataclass(frozen=True)
class FedMR(Algorithm):
    """K models train at K clients, then their layers are shuffled among them (Hu et al., FedMR, algorithm 1).

    The global model is the unweighted mean of the trained models (eq. 5). It is only evaluated and published: no
    client trains it.
    """

    rule: str = "layer"  #: which tensors move together
    probability: Annotated[float, Ge(0), Le(1)] = 1.0  #: that a layer group is shuffled in a round

    def start(self, federation: Federation, previous: State) -> State:
        """Go on from the K models, or from K copies of the global one (the paper's two-stage training)."""
        if federation.slots < 2:
            raise TrainingError(
                "fedmr recombines at least 2 models, but 1 client per round trains 1",
                hint="set training.clients_per_round to 2 or more",
            )
        cohort = distinct_models(federation, previous)
        self._groups(federation, cohort)  # a rule that does not fit the model is told before any training
        return State(cohort, previous.global_weights)

    def aggregate(
        self, federation: Federation, state: State, trained: Trained, round: int
    ) -> tuple[State, RecombinationPlan]:
        """Average the trained models for the global one, then recombine them (lines 8 and 9)."""
        groups = self._groups(federation, trained.cohort)
        plan = draw_plan(groups, trained.cohort.slots, seed=federation.seed, round=round, probability=self.probability)
        recombined = Cohort(recombine_stacked(plan, groups, trained.cohort.tensors))
        return State(recombined, trained.cohort.mean()), plan

    def _groups(self, federation: Federation, cohort: Cohort) -> tuple[LayerGroup, ...]:
        shapes = {name: tuple(tensor.shape[1:]) for name, tensor in cohort.tensors.items()}
        return group_tensors(self.rule, shapes, federation.layers)
