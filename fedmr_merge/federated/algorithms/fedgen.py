"""Data-free knowledge distillation by a generator of features."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms._averaging import Averaging
from fedmr_merge.federated.algorithms._feature_generator import FeatureGenerator, draw_batches, draw_labels, draws
from fedmr_merge.federated.cohort import Cohort, Weights
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Batch, Context, State, Trained
from fedmr_merge.federated.training.forward import Forward

_SAMPLED = 1000  # generated features of a round whose labels are drawn from p̂
_PER_CLASS = 20  # generated features of a round for each class


@dataclass(frozen=True)
class FedGen(Averaging):
    """The server learns to generate features that the clients' heads classify, and the clients train on them, too.

    Zhu, Hong and Zhou, "Data-Free Knowledge Distillation for Heterogeneous Federated Learning", 2021 (ICML): the
    generator minimises eq. 4, the clients minimise eq. 5 and, as in the authors' code, β times a divergence between the
    predictions for an image and for generated features of its class. Features are generated once in a round, and every
    example has its own among them. In the first round there are none, as the generator has seen no client.
    """

    alpha: Annotated[float, Ge(0)] = 0.2  #: α, weight of the loss on generated features
    beta: Annotated[float, Ge(0)] = 0.2  #: β, weight of the divergence from the predictions for them
    generator_steps: Annotated[int, Ge(1), Le(100_000)] = 50  #: steps of the generator in a round
    generator_batch: Annotated[int, Ge(1), Le(100_000)] = 128  #: generated features in each of these steps
    generator_lr: Annotated[float, Gt(0)] = 3e-4  #: learning rate of the generator's Adam
    hidden: Annotated[int, Ge(1), Le(65_536)] = 256  #: width of the generator's hidden layer
    noise: Annotated[int, Ge(1), Le(65_536)] = 32  #: width of the generator's noise, which is uniform in [0, 1)

    def start(self, federation: Federation, previous: State) -> State:
        """Start from the global model, with a newly initialised generator."""
        federation.require_head(self.name, "generates features that heads classify", classes=True)
        forward, example = federation.evaluation_forward, federation.data.inputs("test", slice(0, 1))
        width = forward.features(previous.global_weights, example).shape[1]
        classes, seed = federation.data.num_classes, federation.seed
        generator = FeatureGenerator.initialise(self.noise, classes, self.hidden, width, seed)
        tensors = generator.to(federation.device).tensors
        return replace(super().start(federation, previous), tensors=tensors)

    def dispatch(self, federation: Federation, state: State, selected: tuple[int, ...]) -> tuple[Cohort, Context]:
        """Send the global model, and generated features with their labels."""
        cohort, _ = super().dispatch(federation, state, selected)
        if "label_counts" not in state.facts:
            return cohort, Context()
        random = draws(federation.seed, "generated features", state.facts["round"])
        generator, classes, device = FeatureGenerator(state.tensors), federation.data.num_classes, federation.device
        labels = draw_labels(state.facts["label_counts"], _SAMPLED, random).to(device)
        every = torch.arange(classes, device=device).repeat_interleave(_PER_CLASS)
        noise = torch.rand(len(labels) + len(every), self.noise, generator=random).to(device)
        with torch.no_grad():
            features = generator(torch.cat([labels, every]), noise)
        sampled, per_class = features[: len(labels)], features[len(labels) :]
        generated = {"labels": labels, "sampled": sampled, "per_class": per_class.view(classes, _PER_CLASS, -1)}
        return cohort, Context(shared={"generated": generated})

    def attachments(self, federation: Federation, state: State, context: Context) -> tuple[Context, Context]:
        """Return the generator and the label counts for the clients, of which each sends back its own counts.

        A client that has the generator makes the features itself; here they are made once for all clients.
        """
        counts = torch.zeros(federation.slots, federation.data.num_classes, dtype=torch.int64)
        down = {"generator": FeatureGenerator(state.tensors).parameters, "labels": {"counts": counts[0]}}
        return Context(shared=down), Context(own={"labels": {"counts": counts}})

    def objective(self, forward: Forward, weights: Weights, batch: Batch, context: Context) -> Tensor:
        """Return the cross-entropy, that of generated features, and the divergence from the predictions for them."""
        logits = forward(weights, batch.inputs)
        loss = forward.loss(logits, batch.targets)
        if "generated" not in context.shared:
            return loss
        generated = context.shared["generated"]
        # The features of an example are chosen by its number, as an objective must not draw at random.
        place = batch.indices % _SAMPLED
        loss = loss + self.alpha * F.cross_entropy(
            forward.head(weights, generated["sampled"][place]), generated["labels"][place]
        )
        own_class = generated["per_class"][batch.targets, batch.indices % _PER_CLASS]
        target = forward.head(weights, own_class).detach().log_softmax(dim=1)
        divergence = (target.exp() * (target - logits.log_softmax(dim=1))).sum(dim=1).mean()
        return loss + self.beta * divergence

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Average as FedAvg does, and train the generator on the clients' heads and label counts."""
        averaged = super().aggregate(federation, state, trained, round)
        random = draws(federation.seed, "generator training", round)
        counts = _label_counts(federation, trained.clients)
        batches = draw_batches(counts, self.generator_steps, self.generator_batch, self.noise, random)
        generator, losses = FeatureGenerator(state.tensors).trained(
            federation.evaluation_forward, trained.cohort, batches, self.generator_lr
        )
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                f"fedgen's generator diverged in round {round}: its loss is {losses[-1]}",
                hint="lower fedgen.generator_lr",
                round=round,
            )
        facts = {"label_counts": counts, "round": round, "generator_loss": losses[-1]}
        return replace(averaged, tensors={**averaged.tensors, **generator.tensors}, facts=facts)


def _label_counts(federation: Federation, clients: tuple[int, ...]) -> list[int]:
    """Return how many examples of each class these clients have together."""
    indices = torch.cat([federation.client_indices[client] for client in clients])
    counts = torch.bincount(federation.data.targets("train")[indices], minlength=federation.data.num_classes)
    return [int(count) for count in counts.tolist()]
