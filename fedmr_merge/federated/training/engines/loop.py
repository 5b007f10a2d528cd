"""Train each client separately, and on a CPU one client on each core, which is fastest there."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

import torch
from torch import Tensor

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.protocol import Batch
from fedmr_merge.federated.training.engines._step import (
    LossOf,
    accumulated,
    gradients_of,
    is_out_of_memory,
    own_draws,
    tensor_cores,
)
from fedmr_merge.federated.training.forward import Forward
from fedmr_merge.federated.training.local_training import Engine, LocalTraining
from fedmr_merge.federated.training.optimizers import new_optimizer
from fedmr_merge.seeds import derive_seed


class Loop(Engine):
    """Trains the models of a cohort separately, as many at a time as there are cores.

    Torch's own threads would share the work of single operations, and wait for each other at the end of each. One
    client on each core takes less time, and the bytes do not depend on the number of cores.
    """

    def __init__(self) -> None:
        self._seats: list[_Seat] = []
        self._draws: bool | None = None

    def train(self, task: LocalTraining) -> tuple[Cohort, Sequence[float]]:
        """Return the trained cohort and each client's mean loss."""
        federation = task.federation
        compiled = federation.training.compile
        if not self._seats or self._seats[0].forward is not federation.training_forward:
            self._seats, self._draws = [_Seat(federation.training_forward, compiled=compiled)], None
        trained = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            for name, tensor in task.cohort.tensors.items()
        }
        with tensor_cores(federation), own_draws(federation):
            alone = self._must_be_alone(task)
            together = 1 if alone else min(federation.cores, task.cohort.slots)
            while len(self._seats) < together:
                self._seats.append(_Seat(federation.new_training_forward(), compiled=compiled))
            with _operation_threads(1 if alone else task.slots_of_round) as threads:
                return Cohort(trained), self._train_all(task, trained, together, threads)

    def _must_be_alone(self, task: LocalTraining) -> bool:
        """Whether clients have to train one after the other."""
        if task.federation.device.type != "cpu" or task.federation.training.compile:
            return True
        if self._draws is None:
            self._draws = self._seats[0].draws(task)
        # Torch has one generator for all threads: a model that draws from it, e.g. by dropout, needs it to itself.
        return bool(self._draws)

    def _train_all(
        self, task: LocalTraining, trained: Mapping[str, Tensor], together: int, threads: int
    ) -> list[float]:
        """Train every slot, so many together, each with this many of torch's threads; return their mean losses."""
        free: SimpleQueue[_Seat] = SimpleQueue()
        for seat in self._seats[:together]:
            free.put(seat)
        interrupted = threading.Event()

        def train(slot: int) -> float:
            seat = free.get()
            try:
                return seat.train(task, slot, trained, interrupted)
            finally:
                free.put(seat)

        slots = range(task.cohort.slots)
        if together == 1:
            return [train(slot) for slot in slots]
        pool = ThreadPoolExecutor(together, initializer=torch.set_num_threads, initargs=(threads,))
        try:
            return list(pool.map(train, slots))
        finally:
            interrupted.set()
            pool.shutdown(cancel_futures=True)


@contextmanager
def _operation_threads(models: int) -> Iterator[int]:
    """Divide the threads of torch's operations among so many models, whether they train side by side or in turn: sums
    are added up in another order with another number.
    """
    before = torch.get_num_threads()
    each = max(1, before // models)
    torch.set_num_threads(each)
    try:
        yield each
    finally:
        torch.set_num_threads(before)


class _Seat:
    """Where one client at a time trains: a module and its memory.

    Every model is trained in such memory, so that it trains to the same bytes in whatever slot it lies: a kernel may
    round otherwise at another alignment.
    """

    def __init__(self, forward: Forward, *, compiled: bool) -> None:
        self.forward = forward
        self._loss_of = LossOf(mapped=False, compiled=compiled)

    def train(
        self, task: LocalTraining, slot: int, trained: Mapping[str, Tensor], interrupted: threading.Event
    ) -> float:
        """Train the model of a slot and write it into `trained`; return the mean loss."""
        client = task.clients[slot]
        torch.manual_seed(derive_seed(task.federation.seed, "local training", task.round, client))
        with _explained(task, client):
            loss = self._train(task, slot, interrupted)
        for name, tensor in self.forward.own.items():
            trained[name][slot].copy_(tensor.detach())
        return loss

    def _train(self, task: LocalTraining, slot: int, interrupted: threading.Event) -> float:
        federation, training = task.federation, task.federation.training
        weights = self._place(task, slot)
        parameters = [weights[name] for name in federation.trainable]
        optimizer = new_optimizer(training, task.learning_rate, parameters)
        loss_of, context = self._loss_of(task, self.forward), task.context_of(slot)
        total = torch.zeros((), dtype=torch.float64, device=federation.device)

        def gradients(part: Tensor) -> tuple[Sequence[Tensor], Batch]:
            batch = task.batch(part)
            loss = loss_of(weights, batch, context)
            total.add_(loss.detach() * len(part))
            return gradients_of(loss, parameters), batch

        for indices in task.schedule(slot):
            if interrupted.is_set():
                break
            parts = torch.split(indices, list(federation.accumulated_sizes(len(indices))))
            optimizer.step(accumulated(federation.task, gradients, parts))
        examples = sum(task.step_sizes(slot))
        return float(total) / examples if examples else math.nan

    def _place(self, task: LocalTraining, slot: int) -> dict[str, Tensor]:
        weights = self.forward.own
        with torch.no_grad():
            for name, tensor in task.cohort.slot(slot).items():
                weights[name].copy_(tensor)
        return weights

    def draws(self, task: LocalTraining) -> bool | None:
        """Whether the loss draws at random: to compute it moves torch's generator. None when no client takes a step."""
        slot = max(range(task.cohort.slots), key=lambda slot: (bool(task.step_sizes(slot)), task.examples[slot]))
        if not task.step_sizes(slot):
            return None
        before = torch.get_rng_state()
        with _explained(task, task.clients[slot]):
            first = task.schedule(slot)[0]
            batch = task.batch(first[: task.federation.accumulated_sizes(len(first))[0]])
            self._loss_of(task, self.forward)(self._place(task, slot), batch, task.context_of(slot))
        return not torch.equal(before, torch.get_rng_state())


@contextmanager
def _explained(task: LocalTraining, client: int) -> Iterator[None]:
    """Say in this package's words, and of which client, what can go wrong in a local step."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory while client {client} trained in round {task.round}",
            hint="lower training.batch_size, or training.threads, the clients that a CPU trains at a time",
            client=client,
            round=task.round,
        ) from error
