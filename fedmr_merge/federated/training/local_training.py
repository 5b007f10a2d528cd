"""Local training: K models at K clients, by an engine.

Every engine sees the same batches in the same order and takes the same steps, so that they agree to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Batch, Context, Trained
from fedmr_merge.federated.training.divergence import find_diverged, replace_diverged
from fedmr_merge.federated.training.participation import draw_absent, draw_stragglers
from fedmr_merge.federated.training.privacy import privatise


@dataclass(frozen=True, eq=False)
class LocalTraining:
    """The local training of one round, as an engine is asked to do it."""

    federation: Federation
    algorithm: Algorithm
    cohort: Cohort  #: the dispatched models; an engine never writes to them
    context: Context
    clients: tuple[int, ...]  #: the client of slot i
    round: int
    lr: float | None = None  #: the learning rate of this round; None: that of the federation

    @property
    def learning_rate(self) -> float:
        """The learning rate of this round."""
        return self.federation.training.lr if self.lr is None else self.lr

    def orders(self, slot: int) -> Tensor:
        """Return the order in which a slot's client goes through its examples, on the CPU: int64 [epochs, examples].

        With `local_steps` there are as many epochs as these take. Where the data set is augmented, a row of four (see
        `Data.draw_changes`) stands for each example.
        """
        federation, client = self.federation, self.clients[slot]
        indices = torch.tensor(federation.partition.clients[client])
        epochs = []
        for epoch in range(self._epochs(slot)):
            order = federation.generator("batches", self.round, client, epoch).permutation(len(indices))
            rng = federation.generator("augmentation", self.round, client, epoch)
            epochs.append(federation.data.draw_changes(indices[torch.from_numpy(order)], rng))
        return torch.stack(epochs)

    def schedule(self, slot: int) -> tuple[Tensor, ...]:
        """Return the examples of every local step of a slot's client, by index, in order."""
        sizes = self.step_sizes(slot)
        return torch.split(self.order(slot).to(self.federation.device), list(sizes)) if sizes else ()

    def order(self, slot: int) -> Tensor:
        """Return the examples of all local steps of a slot's client, one after the other, on the CPU: int64 [examples].

        Every epoch goes once through the client's examples in an order of its own, in batches of `batch_sizes`.
        """
        return self.orders(slot)[:, : sum(self.batch_sizes(slot))].flatten(0, 1)[: sum(self.step_sizes(slot))]

    def step_sizes(self, slot: int) -> tuple[int, ...]:
        """Return how many examples each local step of a slot's client takes."""
        if self.absent[slot]:
            return ()
        stragglers, steps = self.federation.training.stragglers, self.federation.training.local_steps
        sizes = (self.batch_sizes(slot) * self._epochs(slot))[:steps]
        return sizes[: stragglers.steps] if stragglers is not None and self._straggling[slot] else sizes

    @cached_property
    def absent(self) -> tuple[bool, ...]:
        """For every slot whether its client does not answer in this round."""
        rng = self.federation.generator("availability", self.round)
        return draw_absent(self.federation.training.availability, len(self.clients), rng)

    @cached_property
    def _straggling(self) -> tuple[bool, ...]:
        stragglers = self.federation.training.stragglers
        if stragglers is None:
            return (False,) * len(self.clients)
        return draw_stragglers(stragglers, len(self.clients), self.federation.generator("stragglers", self.round))

    def _epochs(self, slot: int) -> int:
        """Return how many epochs a slot's client begins."""
        training, batches = self.federation.training, len(self.batch_sizes(slot))
        if training.local_steps is None:
            return training.local_epochs
        return -(-training.local_steps // batches) if batches else 1

    def batch_sizes(self, slot: int) -> tuple[int, ...]:
        """Return how many examples each batch of an epoch of a slot's client holds."""
        return self.federation.batch_sizes(self.clients[slot])

    def batch(self, indices: Tensor) -> Batch:
        """Return the training examples of `orders` as a model takes them; they may be stacked, [batch] or
        [slots, batch].
        """
        data = self.federation.data
        inputs, indices = data.training_inputs(indices)
        if indices.dim() == 1:
            inputs = self.federation.training_forward.laid_out(inputs)
        return Batch(inputs, data.targets("train")[indices], indices)

    def context_of(self, slot: int) -> Context:
        """Return the context as the client of a slot sees it."""
        own = {
            family: {name: tensor[slot] for name, tensor in tensors.items()}
            for family, tensors in self.context.own.items()
        }
        return Context(self.context.shared, own)

    @property
    def examples(self) -> tuple[int, ...]:
        """How many examples the client of every slot holds."""
        sizes = self.federation.partition.sizes
        return tuple(sizes[client] for client in self.clients)


class Engine:
    """Base of the engines."""

    fitting: int | None = None
    """How many clients at once memory was found to have room for; None until it ran out."""

    def train(self, task: LocalTraining) -> tuple[Cohort, Sequence[float]]:
        """Return the trained cohort, and for every slot the objective's mean over the examples that it went through.

        The mean of a slot that took no step is NaN.
        """
        raise NotImplementedError


def train_cohort(engine: Engine, task: LocalTraining, *, own_models: bool = False) -> Trained:
    """Let an engine train the cohort, handle clients that diverged or did not answer, and make private what is sent.

    Raises TrainingError, with the client's number, when a client diverges and `on_divergence` is `fail`, or when all
    do.
    """
    cohort, losses = engine.train(task)
    federation, training = task.federation, task.federation.training
    steps = tuple(len(task.step_sizes(slot)) for slot in range(len(task.clients)))
    diverged = find_diverged(cohort, losses, steps, task.clients, task.round, training)
    if training.privacy is not None:
        cohort = privatise(training.privacy, task.cohort, cohort, federation.trainable, federation.secret, task.round)
    trained = Trained(
        cohort=cohort,
        clients=task.clients,
        examples=task.examples,
        steps=steps,
        losses=tuple(losses),
        lr=task.learning_rate,
        absent=tuple(client for client, absent in zip(task.clients, task.absent, strict=True) if absent),
    )
    dispatched, answered = task.cohort, [slot for slot, absent in enumerate(task.absent) if not absent]
    if 0 < len(answered) < len(steps) and not own_models:
        trained, dispatched = trained.of_slots(answered), dispatched.of_slots(answered)
        diverged = {answered.index(slot): fault for slot, fault in diverged.items()}
    if diverged:
        trained = replace_diverged(trained, diverged, dispatched, training.on_divergence, own_models)
    return trained
