"""Federated averaging with a proximal term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from fedmr_merge.federated.algorithms._averaging import Averaging
from fedmr_merge.federated.cohort import Cohort, Weights
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Batch, Context, State
from fedmr_merge.federated.training.forward import Forward


@dataclass(frozen=True)
class FedProx(Averaging):
    """A penalty holds the clients near the global model w: they minimise F(v) + μ/2 ‖v − w‖².

    Li et al., "Federated Optimization in Heterogeneous Networks", 2020 (MLSys), eq. 2.
    """

    mu: Annotated[float, Ge(0)] = 0.01  #: μ, weight of the proximal term; 0 is FedAvg

    def dispatch(self, federation: Federation, state: State, selected: tuple[int, ...]) -> tuple[Cohort, Context]:
        """Send the global model, which is also the centre that clients stay near."""
        cohort, _ = super().dispatch(federation, state, selected)
        centre = {name: state.global_weights[name] for name in federation.trainable}
        return cohort, Context(shared={"centre": centre})

    def attachments(self, federation: Federation, state: State, context: Context) -> tuple[Context, Context]:
        """Return nothing: the model that a client gets is the one that it stays near."""
        return Context(), Context()

    def objective(self, forward: Forward, weights: Weights, batch: Batch, context: Context) -> Tensor:
        """Return the cross-entropy and the proximal term."""
        loss = super().objective(forward, weights, batch, context)
        centre = context.shared["centre"]
        return loss + self.mu / 2 * sum((weights[name] - tensor).square().sum() for name, tensor in centre.items())
