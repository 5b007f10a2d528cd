"""Local training: K models at K clients, by an engine.

Every engine sees the same batches in the same order and takes the same steps, so that they agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Batch, Context, Trained
from fedmr_merge.federated.training.divergence import find_diverged, finite_models, replace_diverged
from fedmr_merge.federated.training.participation import draw_absent, draw_stragglers
from fedmr_merge.federated.training.privacy import private_mean, privatise


@dataclass(frozen=True)
class SlotOfRound:
    """Which slot of a round is trained, where those of the other clients are trained elsewhere."""

    slot: int
    slots: int  #: K, of the whole round


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
    place: SlotOfRound | None = None  #: where the cohort is one model of a round, not all of them: which one
    dispatch: Callable[[tuple[int, ...]], tuple[Cohort, Context]] | None = None
    """Returns what other clients get in the slots; None where clients cannot be replaced."""

    @property
    def slots_of_round(self) -> int:
        """K, the number of clients that train in this round, here or elsewhere."""
        return len(self.clients) if self.place is None else self.place.slots

    @property
    def learning_rate(self) -> float:
        """The learning rate of this round."""
        return self.federation.training.lr if self.lr is None else self.lr

    def with_clients(self, clients: tuple[int, ...]) -> LocalTraining:
        """Return the same local training with these clients in the slots."""
        assert self.dispatch is not None
        cohort, context = self.dispatch(clients)
        return replace(self, clients=clients, cohort=cohort, context=context)

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

        Every epoch goes once through the client's examples in an order of its own, in steps of `epoch_step_sizes`.
        """
        return self.orders(slot)[:, : sum(self.epoch_step_sizes(slot))].flatten(0, 1)[: sum(self.step_sizes(slot))]

    def step_sizes(self, slot: int) -> tuple[int, ...]:
        """Return how many examples each local step of a slot's client takes."""
        if self.absent[slot]:
            return ()
        stragglers, steps = self.federation.training.stragglers, self.federation.training.local_steps
        sizes = (self.epoch_step_sizes(slot) * self._epochs(slot))[:steps]
        return sizes[: stragglers.steps] if stragglers is not None and self._straggling[slot] else sizes

    @cached_property
    def absent(self) -> tuple[bool, ...]:
        """For every slot whether its client does not answer in this round."""
        rng = self.federation.generator("availability", self.round)
        return self._here(draw_absent(self.federation.training.availability, self.slots_of_round, rng))

    @cached_property
    def _straggling(self) -> tuple[bool, ...]:
        stragglers = self.federation.training.stragglers
        if stragglers is None:
            return (False,) * len(self.clients)
        rng = self.federation.generator("stragglers", self.round)
        return self._here(draw_stragglers(stragglers, self.slots_of_round, rng))

    def _here(self, drawn: tuple[bool, ...]) -> tuple[bool, ...]:
        """Return what was drawn for the slots that are trained here, of all slots of the round."""
        return drawn if self.place is None else (drawn[self.place.slot],)

    def _epochs(self, slot: int) -> int:
        """Return how many epochs a slot's client begins."""
        training, steps = self.federation.training, len(self.epoch_step_sizes(slot))
        if training.local_steps is None:
            return training.local_epochs
        return -(-training.local_steps // steps) if steps else 1

    def epoch_step_sizes(self, slot: int) -> tuple[int, ...]:
        """Return how many examples each step of a local epoch of a slot's client takes."""
        return self.federation.epoch_step_sizes(self.clients[slot])

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


@dataclass(frozen=True, eq=False)
class Answers:
    """What an engine got back from the clients of a round."""

    task: LocalTraining  #: as it was done in the end: where clients were replaced, with those that replaced them
    cohort: Cohort  #: the trained models; in the slot of a client that is missing or diverged, the dispatched model
    losses: Sequence[float]  #: by slot; see `Engine.train`
    missing: Mapping[int, str] = field(default_factory=dict)  #: slot → why nothing that its client sent counts
    finite: Sequence[bool] | None = None  #: whether all weights of each trained model are finite, where that is known
    is_private: bool = False  #: whether the clients have done to their updates what `training.privacy` has clients do
    report: Mapping[str, Any] | None = None  #: what the engine records of the round, as JSON values


class Engine:
    """Base of the engines."""

    fitting: int | None = None
    """How many clients train at once, where memory or several devices decide that; else None."""
    packages: ClassVar[tuple[str, ...]] = ()
    """The installed packages, besides those of every run, that its results depend on."""

    def train(self, task: LocalTraining) -> tuple[Cohort, Sequence[float]]:
        """Return the trained cohort, and for every slot the objective's mean over the examples that it went through.

        The mean of a slot that took no step is NaN.
        """
        raise NotImplementedError

    def hold(self, cohort: Cohort) -> Cohort:
        """Return the cohort that a run begins with, or is resumed with, as the engine holds those that it trains."""
        return cohort

    def answers(self, task: LocalTraining) -> Answers:
        """Return what comes back from the clients of a round; in one process every client answers."""
        cohort, losses = self.train(task)
        return Answers(task, cohort, losses)


def train_cohort(engine: Engine, task: LocalTraining, *, own_models: bool = False) -> Trained:
    """Let an engine train the cohort, handle clients that diverged or did not answer, and make private what is sent.

    Raises TrainingError, with the client's number, when a client diverges and `on_divergence` is `fail`, or when all
    do.
    """
    answers = engine.answers(task)
    task, cohort, losses = answers.task, answers.cohort, answers.losses
    federation, training = task.federation, task.federation.training
    finite = finite_models(cohort) if answers.finite is None else answers.finite
    absent = tuple(drawn or slot in answers.missing for slot, drawn in enumerate(task.absent))
    steps = tuple(0 if absent[slot] else len(task.step_sizes(slot)) for slot in range(len(task.clients)))
    diverged = find_diverged(finite, losses, steps, task.clients, task.round, training)
    privacy = training.privacy
    if privacy is not None and privacy.kind == "local" and not answers.is_private:
        cohort = privatise(privacy, task.cohort, cohort, federation.trainable, federation.secret, task.round)
    trained = Trained(
        cohort=cohort,
        clients=task.clients,
        examples=task.examples,
        steps=steps,
        losses=tuple(losses),
        lr=task.learning_rate,
        absent=tuple(client for client, is_absent in zip(task.clients, absent, strict=True) if is_absent),
        asked=task.clients,
        missing={task.clients[slot]: reason for slot, reason in answers.missing.items()},
        report=answers.report,
    )
    dispatched, answered = task.cohort, [slot for slot, is_absent in enumerate(absent) if not is_absent]
    if 0 < len(answered) < len(steps) and not own_models:
        trained, dispatched = trained.of_slots(answered), dispatched.of_slots(answered)
        diverged = {answered.index(slot): fault for slot, fault in diverged.items()}
    if diverged:
        trained = replace_diverged(trained, diverged, dispatched, training.on_divergence, own_models)
    if privacy is not None and training.shows_the_mean_alone:
        names = federation.trainable
        mean = private_mean(privacy, dispatched, trained.cohort, names, federation.secret, task.round)
        trained = replace(trained, cohort=mean)
    return trained
