"""Train the whole cohort at once, which is fastest on a GPU.

Models and their statistics are stacked, [clients, ...], and a local step is one pass over as many clients as have a
batch of the same size to go through: see `_stacked.py`. No batch is padded or masked, so that batch normalisation sees
what it sees in `loop`. Clients are sorted by their number of full batches: those that are still busy in an epoch are
always the first ones, and a step works on a slice of the stack, in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from fedmr_merge.errors import TrainingError, shown
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.protocol import Context
from fedmr_merge.federated.training.engines._step import (
    Loss,
    LossOf,
    gradients_of,
    is_out_of_memory,
    own_draws,
    sliced,
    tensor_cores,
)
from fedmr_merge.federated.training.local_training import Engine, LocalTraining
from fedmr_merge.federated.training.optimizers import Optimizer, new_optimizer
from fedmr_merge.seeds import derive_seed

BatchSizes = tuple[int, ...]
"""How many examples each batch of a client's epoch holds, in order."""


@dataclass(frozen=True)
class Step:
    """A local step of the clients `start` to `stop` - 1 of a sorted part of a cohort."""

    start: int
    stop: int
    size: int  #: of each client's batch


def plan_steps(sizes: Sequence[BatchSizes], batch_size: int) -> tuple[Step, ...]:
    """Return the steps for clients with batches of these sizes, sorted as `processing_order` has them.

    Every client takes its batches in order; neighbours whose next batches have one size take them together. While any
    client has a full batch next, full ones are taken, so that clients wait for each other before their others.
    """
    done, steps = [0] * len(sizes), list[Step]()
    while any(after < len(batches) for after, batches in zip(done, sizes, strict=True)):
        following = [batches[after] if after < len(batches) else 0 for after, batches in zip(done, sizes, strict=True)]
        only = (batch_size,) if batch_size in following else set(following) - {0}
        start = 0
        for size, run in groupby(following):
            stop = start + len(list(run))
            if size in only:
                steps.append(Step(start, stop, size))
                done[start:stop] = [after + 1 for after in done[start:stop]]
            start = stop
    return tuple(steps)


def processing_order(sizes: Sequence[BatchSizes], batch_size: int) -> tuple[int, ...]:
    """Return the slots, those with the most full batches first, and last batches of one size side by side."""

    def place(slot: int) -> tuple[int, int, int]:
        return -sizes[slot].count(batch_size), _last(sizes[slot], batch_size), slot

    return tuple(sorted(range(len(sizes)), key=place))


def _last(sizes: BatchSizes, batch_size: int) -> int:
    """Return the size of a client's last batch where that is not full, else 0."""
    return sizes[-1] if sizes and sizes[-1] != batch_size else 0


class Vmap(Engine):
    """Trains the models of a cohort together, in as many parts as memory asks for."""

    def __init__(self, fitting: int | None = None) -> None:
        """Train at most `fitting` clients at once, where an earlier round found that no more fit into memory."""
        self._loss_of = LossOf(mapped=True)
        self.fitting = fitting

    def train(self, task: LocalTraining) -> tuple[Cohort, Sequence[float]]:
        """Return the trained cohort and each client's mean loss."""
        trained = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            for name, tensor in task.cohort.tensors.items()
        }
        losses = torch.empty(task.cohort.slots, dtype=torch.float64, device=task.federation.device)
        sizes = [task.batch_sizes(slot) for slot in range(task.cohort.slots)]
        left = processing_order(sizes, task.federation.training.batch_size)
        with tensor_cores(task.federation), own_draws(task.federation):
            while left:
                part = left[: self.fitting or task.federation.training.cohort_chunk or len(left)]
                error = self._train_part(task, part, trained, losses)
                if error is not None:
                    self._make_parts_smaller(task, part, error)
                    continue
                left = left[len(part) :]
        return Cohort(trained), losses.tolist()

    def _make_parts_smaller(self, task: LocalTraining, part: Sequence[int], error: str) -> None:
        if len(part) == 1:
            raise TrainingError(
                f"out of memory while client {task.clients[part[0]]} trained alone in round {task.round}: {error}",
                hint="lower training.batch_size",
                client=task.clients[part[0]],
                round=task.round,
            )
        self.fitting = (len(part) + 1) // 2
        if task.federation.device.type == "cuda":
            torch.cuda.empty_cache()

    def _train_part(
        self, task: LocalTraining, part: Sequence[int], trained: dict[str, Tensor], losses: Tensor
    ) -> str | None:
        """Train the slots of a part and write down their models and losses; return torch's words when memory ran out.

        What was dispatched is never written to, so that a part can be trained again, in smaller ones.
        """
        first = task.clients[part[0]]
        torch.manual_seed(derive_seed(task.federation.seed, "local training", task.round, first))
        try:
            weights, means = _Part(task, part).train(self._loss_of(task, task.federation.training_forward))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Not the error itself: its traceback would keep the tensors of the step that failed.
            return shown((str(error).strip() or "no reason given").splitlines()[0])
        # A tensor: torch would copy a list to the device once for every name.
        rows = torch.tensor(part, device=losses.device)
        for name, tensor in weights.items():
            trained[name].index_copy_(0, rows, tensor.detach())
        losses.index_copy_(0, rows, means)
        return None


class _Part:
    """The models of some slots, stacked in processing order, while they are trained."""

    def __init__(self, task: LocalTraining, part: Sequence[int]) -> None:
        federation = task.federation
        rows = torch.tensor(part, device=federation.device)
        self._task, self._part = task, part
        self._sizes = [task.step_sizes(slot) for slot in part]
        self._orders = [task.order(slot) for slot in part]
        self._weights = {name: tensor.index_select(0, rows) for name, tensor in task.cohort.tensors.items()}
        self._own = {
            family: {name: tensor.index_select(0, rows) for name, tensor in tensors.items()}
            for family, tensors in task.context.own.items()
        }
        parameters = [self._weights[name] for name in federation.trainable]
        self._optimizer = new_optimizer(federation.training, task.learning_rate, parameters, stacked=True)
        self._totals = torch.zeros(len(part), dtype=torch.float64, device=federation.device)

    def train(self, loss_of: Loss) -> tuple[dict[str, Tensor], Tensor]:
        """Train to the end; return the stacked models and their mean losses."""
        windows: dict[tuple[int, int], _Window] = {}
        for step, indices in self._batches():
            window = windows.get((step.start, step.stop))
            if window is None:
                window = windows[step.start, step.stop] = self._window(step.start, step.stop)
            losses = loss_of(window.weights, self._task.batch(indices), window.context)
            # The clients share no tensor: the gradient of the sum is that of each client's own loss.
            window.optimizer.step(gradients_of(losses.sum(), window.parameters))
            window.totals.add_(losses.detach(), alpha=step.size)
        examples = torch.tensor([sum(sizes) for sizes in self._sizes], dtype=torch.float64, device=self._totals.device)
        # A client that takes no step has a loss of 0 / 0, NaN.
        return self._weights, self._totals / examples

    def _batches(self) -> Iterator[tuple[Step, Tensor]]:
        """Yield every step with its examples, [clients, batch]."""
        done, planned, batches = [0] * len(self._sizes), list[Step](), list[Tensor]()
        for sizes in self._stretches():
            steps = plan_steps(sizes, self._task.federation.training.batch_size)
            for step in steps:
                for client in range(step.start, step.stop):
                    batches.append(self._orders[client][done[client] : done[client] + step.size])
                    done[client] += step.size
            planned += steps
        if not planned:
            return
        # One transfer, which is waited for: there is none within an epoch.
        indices = torch.cat(batches).to(self._totals.device)
        for step in planned:
            count = (step.stop - step.start) * step.size
            yield step, indices[:count].view(-1, step.size, *indices.shape[1:])
            indices = indices[count:]

    def _stretches(self) -> Iterator[list[BatchSizes]]:
        """Yield the sizes of the batches that are planned together: those of an epoch, or all of so many local steps,
        of which each client takes as many.
        """
        if self._task.federation.training.local_steps is not None:
            yield self._sizes
            return
        lengths = [len(self._task.batch_sizes(slot)) for slot in self._part]
        for epoch in range(self._task.federation.training.local_epochs):
            yield [
                sizes[epoch * length : (epoch + 1) * length] for sizes, length in zip(self._sizes, lengths, strict=True)
            ]

    def _window(self, start: int, stop: int) -> _Window:
        trainable = self._task.federation.trainable
        weights = {name: tensor[start:stop] for name, tensor in self._weights.items()}
        parameters = [weights[name].requires_grad_() for name in trainable]
        optimizer = self._optimizer.window(start, stop)
        context = Context(self._task.context.shared, sliced(self._own, start, stop))
        return _Window(weights, parameters, optimizer, context, self._totals[start:stop])


@dataclass(frozen=True)
class _Window:
    """A slice of the stack that steps work on: views, so that what they write is in the stack."""

    weights: dict[str, Tensor]
    parameters: list[Tensor]
    optimizer: Optimizer
    context: Context
    totals: Tensor  #: sums of losses over examples
