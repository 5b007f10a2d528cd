"""Multi-to-multi training with cross-aggregation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le
from torch import Tensor

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.base import Algorithm, distinct_models
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State, Trained


@dataclass(frozen=True)
class FedCross(Algorithm):
    """K models train at K clients, and then each is averaged with a little of a partner: α v_i + (1 − α) v_partner.

    Hu et al., "FedCross: Towards Accurate Federated Learning via Multi-Model Cross-Aggregation", 2024 (ICDE, arXiv
    2210.08285). The global model is the unweighted mean of the K models. The paper speeds up the first rounds with
    several partners ("propeller models") and a growing α; here a stage of `fedavg` before this one does that.
    """

    alpha: Annotated[float, Ge(0.5), Le(1)] = 0.99  #: α, share that a model keeps of itself; 1 is `independent`
    partner: Literal["in_order", "most_similar", "least_similar"] = (
        "least_similar"  #: by the cosine of the trained models, or in turn
    )

    @property
    def why_single_models(self) -> str:
        """Why the server must see the model of each client."""
        return "crosses every model with another one"

    def start(self, federation: Federation, previous: State) -> State:
        """Start from the K models, or from K copies of the global model."""
        if federation.slots < 2:
            raise TrainingError(
                "fedcross crosses at least 2 models, but 1 client per round trains 1",
                hint="set training.clients_per_round to 2 or more",
            )
        return State(distinct_models(federation, previous), previous.global_weights)

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Average every model with its partner; integer buffers stay as they are."""
        partners = self._partners(federation, trained.cohort, round)

        def cross(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            return self.alpha * tensor + (1 - self.alpha) * tensor[partners]

        crossed = Cohort({name: cross(tensor) for name, tensor in trained.cohort.tensors.items()})
        mean = federation.mean(crossed)
        return State(crossed, mean.weights, metrics=mean.metrics)

    def _partners(self, federation: Federation, trained: Cohort, round: int) -> list[int]:
        slots = trained.slots
        if self.partner == "in_order":
            # In K − 1 rounds, each of the other models is the partner once.
            return [(slot + round % (slots - 1) + 1) % slots for slot in range(slots)]
        cosines = trained.similarities(federation.trainable)
        if self.partner == "least_similar":
            cosines = -cosines
        # A model is never its own partner.
        cosines.fill_diagonal_(float("-inf"))
        return [int(slot) for slot in cosines.argmax(dim=1)]
