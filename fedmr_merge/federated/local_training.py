"""Local training: K models at K clients, by an engine.

Every engine sees the same batches in the same order and takes the same steps, so that they agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Algorithm, Batch, Context, Trained


@dataclass(frozen=True, eq=False)
class LocalTraining:
    """The local training of one round: what an engine is asked to do."""

    federation: Federation
    algorithm: Algorithm
    cohort: Cohort  #: the dispatched models; an engine never writes to them
    context: Context
    clients: tuple[int, ...]  #: the client of slot i
    round: int

    def schedule(self, slot: int) -> tuple[Tensor, ...]:
        """Return the examples of every local step of a slot's client, by index, in order.

        Every epoch goes once through the client's examples in an order of its own; its last batch may be smaller.
        """
        training, client = self.federation.training, self.clients[slot]
        indices = self.federation.client_indices[client]
        batches: list[Tensor] = []
        for epoch in range(training.local_epochs):
            order = self.federation.generator("batches", self.round, client, epoch).permutation(len(indices))
            shuffled = indices[torch.from_numpy(order).to(indices.device)]
            batches.extend(torch.split(shuffled, training.batch_size))
        return tuple(batches)

    def batch(self, indices: Tensor) -> Batch:
        """Return these training examples, normalised."""
        data = self.federation.data
        return Batch(data.normalise(data.train_images[indices]), data.train_labels[indices])

    def context_of(self, slot: int) -> Context:
        """Return the context as the client of a slot sees it."""
        own = {
            family: {name: tensor[slot] for name, tensor in tensors.items()}
            for family, tensors in self.context.own.items()
        }
        return Context(self.context.shared, own)


class Engine:
    """Base of the engines."""

    def train(self, task: LocalTraining) -> tuple[Cohort, Sequence[float]]:
        """Return the trained cohort, and for every slot the objective's mean over the examples it went through."""
        raise NotImplementedError


def train_cohort(engine: Engine, task: LocalTraining) -> Trained:
    """Let an engine train the cohort, and check what comes back.

    Raises TrainingError, with the client's number, when a loss or a weight is not finite.
    """
    cohort, losses = engine.train(task)
    _require_finite(task, cohort, losses)
    sizes = task.federation.partition.sizes
    training = task.federation.training
    examples = tuple(sizes[client] for client in task.clients)
    return Trained(
        cohort=cohort,
        clients=task.clients,
        examples=examples,
        steps=tuple(training.local_epochs * -(-size // training.batch_size) for size in examples),
        losses=tuple(losses),
    )


def _require_finite(task: LocalTraining, cohort: Cohort, losses: Sequence[float]) -> None:
    finite = torch.ones(cohort.slots, dtype=torch.bool, device=task.federation.device)
    for tensor in cohort.tensors.values():
        if tensor.is_floating_point():
            finite &= torch.isfinite(tensor).flatten(1).all(dim=1)
    for slot, (loss, weights_finite) in enumerate(zip(losses, finite.tolist(), strict=True)):
        if not (math.isfinite(loss) and weights_finite):
            raise TrainingError(
                f"client {task.clients[slot]} diverged in round {task.round}: "
                + ("its weights are not all finite" if math.isfinite(loss) else f"its training loss is {loss}"),
                hint="lower training.lr",
            )
