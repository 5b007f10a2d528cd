"""Model-contrastive federated learning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from fedmr_merge.federated.algorithms._averaging import Averaging
from fedmr_merge.federated.algorithms._client_memory import recall, remembering
from fedmr_merge.federated.cohort import Cohort, Weights
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Batch, Context, State, Trained
from fedmr_merge.federated.training.forward import Forward


@dataclass(frozen=True)
class Moon(Averaging):
    """A contrastive loss draws a client's features to those of the global model, away from those of its last model.

    Li, He and Song, "Model-Contrastive Federated Learning", 2021 (CVPR): the local loss ℓ_sup + μ ℓ_con of section 3.
    The features are the input of the last layer: no projection head is added, so that all methods train the same
    model. The last model of a client is kept from its first round on; until then the global model takes its place,
    which makes ℓ_con a constant.
    """

    mu: Annotated[float, Ge(0)] = 1.0  #: μ, weight of the contrastive term; 0 is FedAvg
    temperature: Annotated[float, Gt(0)] = 0.5  #: τ, temperature of the contrastive term

    @property
    def why_single_models(self) -> str:
        """Why the server must see the model of each client."""
        return "keeps the model that each client trained"

    def start(self, federation: Federation, previous: State) -> State:
        """Start from the global model."""
        federation.require_head(self.name, "compares the features of models")
        return super().start(federation, previous)

    def dispatch(self, federation: Federation, state: State, selected: tuple[int, ...]) -> tuple[Cohort, Context]:
        """Send the global model; each client has its own previous model."""
        cohort, _ = super().dispatch(federation, state, selected)
        previous = recall(state.tensors, selected, state.global_weights)
        return cohort, Context(shared={"global": state.global_weights}, own={"previous": previous})

    def attachments(self, federation: Federation, state: State, context: Context) -> tuple[Context, Context]:
        """Return nothing: the model that a client gets is the global one, and it has kept its previous one."""
        return Context(), Context()

    def objective(self, forward: Forward, weights: Weights, batch: Batch, context: Context) -> Tensor:
        """Return ℓ_sup + μ ℓ_con."""
        features = forward.features(weights, batch.inputs)
        logits = forward.head(weights, features)
        anchors = (context.shared["global"], context.own["previous"])
        similarities = [
            F.cosine_similarity(features, forward.frozen.features(anchor, batch.inputs)) for anchor in anchors
        ]
        # −log(exp(s_glob/τ) / (exp(s_glob/τ) + exp(s_prev/τ))) is a cross-entropy of two logits, the first being right.
        contrast = F.softplus((similarities[1] - similarities[0]) / self.temperature)
        return forward.loss(logits, batch.targets) + self.mu * contrast.mean()

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Average as FedAvg does, and keep what the clients trained."""
        state = super().aggregate(federation, state, trained, round)
        memory = remembering(state.tensors, trained.clients, trained.cohort.tensors, trained.steps)
        return replace(state, tensors=memory)
