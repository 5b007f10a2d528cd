"""The training of some clients of a round together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from threading import Event

import torch
from torch import Tensor

from fedmr_merge.federated.protocol import Batch
from fedmr_merge.federated.training.engines._plan import Step, StepSizes, padded, plan_steps
from fedmr_merge.federated.training.engines._recording import Record, RecordedStep
from fedmr_merge.federated.training.engines._stack import Stack, Window
from fedmr_merge.federated.training.engines._step import Loss, accumulated, gradients_of
from fedmr_merge.federated.training.local_training import LocalTraining


@dataclass(frozen=True)
class Losses:
    """The losses by which stacked clients train, and how steps are taken."""

    written: Loss  #: as the method has it
    compiled: Loss | None  #: by torch.compile, for steps of full batches alone
    record: Record | None  #: records such steps

    @property
    def bounds_shapes(self) -> bool:
        """Whether the shapes of full batches must be few, since something is made for each."""
        return self.compiled is not None or self.record is not None


class Part:
    """The clients of some slots, in processing order, whose models lie in a stack."""

    def __init__(self, task: LocalTraining, part: Sequence[int], stack: Stack, interrupted: Event) -> None:
        """Take what their batches hold; the models must have been loaded. `interrupted` ends it after a step."""
        self._task, self._part, self._stack, self._interrupted = task, part, stack, interrupted
        self._sizes = [task.step_sizes(slot) for slot in part]
        self._orders = [task.order(slot) for slot in part]

    def train(self, losses: Losses, recorded: dict[int, RecordedStep]) -> Tensor:
        """Train to the end; return the mean losses. `recorded` keeps recorded steps, by their number of clients."""
        size = self._task.federation.training.examples_per_step
        for step, batches in groupby(self._batches(), key=lambda pair: pair[0]):
            every = (indices for _, indices in batches)
            if losses.bounds_shapes and step.start == 0 and step.size == size:
                self._take_bounded(step, every, losses, recorded)
            else:
                window = self._stack.window(step.start, step.stop)
                for indices in every:
                    self._take(window, losses.written, indices)
        totals = self._stack.totals
        examples = torch.tensor([sum(sizes) for sizes in self._sizes], dtype=torch.float64, device=totals.device)
        # A client that takes no step has a loss of 0 / 0, NaN.
        return totals / examples

    def _take(self, window: Window, loss: Loss, indices: Tensor) -> None:
        """Take a step with examples [clients, batch]."""

        def gradients(part: Tensor) -> tuple[Sequence[Tensor], Batch]:
            batch = self._task.batch(part)
            losses = loss(window.weights, batch, window.context)
            window.totals.add_(losses.detach(), alpha=part.shape[1])
            # The clients share no tensor: the gradient of the sum is that of each client's own loss.
            return gradients_of(losses.sum(), window.parameters), batch

        federation = self._task.federation
        parts = torch.split(indices, list(federation.accumulated_sizes(indices.shape[1])), dim=1)
        window.optimizer.step(accumulated(federation.task, gradients, parts))

    def _take_bounded(
        self, step: Step, batches: Iterable[Tensor], losses: Losses, recorded: dict[int, RecordedStep]
    ) -> None:
        """Take steps of the first clients, and of some that follow, who are as they were afterwards.

        Those are given the examples of the first client: no client's batch is filled up, as its normalisations would
        see that.
        """
        stop = padded(step, len(self._part), self._task.federation.slots)
        window, loss = self._stack.window(0, stop), losses.compiled or losses.written
        rows = torch.arange(stop, device=self._stack.totals.device)
        rows = rows.where(rows < step.stop, 0)
        with self._stack.spared(step.stop, stop):
            for indices in batches:
                filled = indices if stop == step.stop else indices.index_select(0, rows)
                if losses.record is None:
                    self._take(window, loss, filled)
                else:
                    recording = recorded.setdefault(stop, RecordedStep(losses.record))
                    recording(lambda own: self._take(window, loss, own), filled)

    def _batches(self) -> Iterator[tuple[Step, Tensor]]:
        """Yield every step with its examples, [clients, batch]."""
        done, planned, batches = [0] * len(self._sizes), list[Step](), list[Tensor]()
        for sizes in self._stretches():
            steps = plan_steps(sizes, self._task.federation.training.examples_per_step)
            for step in steps:
                for client in range(step.start, step.stop):
                    batches.append(self._orders[client][done[client] : done[client] + step.size])
                    done[client] += step.size
            planned += steps
        if not planned:
            return
        # One transfer, which is waited for: there is none within an epoch.
        indices = torch.cat(batches).to(self._stack.totals.device)
        for step in planned:
            if self._interrupted.is_set():
                return
            count = (step.stop - step.start) * step.size
            yield step, indices[:count].view(-1, step.size, *indices.shape[1:])
            indices = indices[count:]

    def _stretches(self) -> Iterator[list[StepSizes]]:
        """Yield the sizes of the steps that are planned together: those of an epoch, or all of so many local steps,
        of which each client takes as many.
        """
        if self._task.federation.training.local_steps is not None:
            yield self._sizes
            return
        lengths = [len(self._task.epoch_step_sizes(slot)) for slot in self._part]
        for epoch in range(self._task.federation.training.local_epochs):
            yield [
                sizes[epoch * length : (epoch + 1) * length] for sizes, length in zip(self._sizes, lengths, strict=True)
            ]
