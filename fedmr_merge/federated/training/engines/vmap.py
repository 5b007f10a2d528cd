"""Train the whole cohort at once, which is fastest on a GPU.

Models and their statistics are stacked, [clients, ...], and a local step is one pass over as many clients as have a
batch of the same size to go through: see `_stacked.py`. No batch is padded or masked, so that batch normalisation sees
what it sees in `loop`. Clients are sorted by their number of full batches: those that are still busy in an epoch are
always the first ones, and a step works on a slice of the stack, in place.

Where there are several devices, parts of the cohort are dealt to them. What a part trains to depends on the clients in
it, not on the device or on when it is trained, so that parts of one size give one result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch
from torch import Tensor

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.training.engines._place import Place
from fedmr_merge.federated.training.engines._plan import processing_order
from fedmr_merge.federated.training.engines._recording import Record
from fedmr_merge.federated.training.engines._step import own_draws, tensor_cores
from fedmr_merge.federated.training.local_training import Engine, LocalTraining

Slots = tuple[int, ...]


class Vmap(Engine):
    """Trains the models of a cohort together, in as many parts as devices and memory ask for."""

    def __init__(self, fitting: int | None = None, record: Record | None = None) -> None:
        """Train at most `fitting` clients at once, as an earlier round found that no more fit into memory or that they
        had to be dealt to several devices.

        Steps are recorded by `record`; by default they are on a GPU, where `training.compile` says so.
        """
        self.fitting = fitting
        self._record = record
        self._federation: Federation | None = None
        self._places: list[Place] = []

    def train(self, task: LocalTraining) -> tuple[Cohort, Sequence[float]]:
        """Return the trained cohort and each client's mean loss."""
        federation = task.federation
        self._take_places(federation)
        trained = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            for name, tensor in task.cohort.tensors.items()
        }
        losses = torch.empty(task.cohort.slots, dtype=torch.float64, device=federation.device)
        sizes = [task.epoch_step_sizes(slot) for slot in range(task.cohort.slots)]
        left = processing_order(sizes, federation.training.examples_per_step)
        with tensor_cores(federation), own_draws(federation):
            while left:
                size = self.fitting or federation.clients_at_once
                for part, error in self._train_parts(task, _split(left, size), trained, losses):
                    if error is not None:
                        self._make_parts_smaller(task, part, error)
                        break
                    left = left[len(part) :]
        return Cohort(trained), losses.tolist()

    def _take_places(self, federation: Federation) -> None:
        if self._federation is not federation:
            self._federation = federation
            self._places = [Place(each, self._record) for each in federation.on_devices()]
        if len(self._places) > 1 and federation.training.cohort_chunk is None:
            # It is remembered, so that a run that is resumed with fewer devices or more gives the same bytes.
            self.fitting = self.fitting or federation.clients_at_once

    def _train_parts(
        self, task: LocalTraining, parts: Sequence[Slots], trained: dict[str, Tensor], losses: Tensor
    ) -> Iterator[tuple[Slots, str | None]]:
        """Train parts on all devices; yield each in order, with torch's words where memory ran out."""
        if len(self._places) == 1 or len(parts) == 1:
            for part in parts:
                yield part, self._places[0].train(task, part, trained, losses)
            return
        free: SimpleQueue[Place] = SimpleQueue()
        for place in self._places:
            place.interrupted.clear()
            free.put(place)

        def train(part: Slots) -> str | None:
            place = free.get()
            try:
                return place.train(task, part, trained, losses)
            finally:
                free.put(place)

        pool = ThreadPoolExecutor(len(self._places))
        try:
            yield from zip(parts, pool.map(train, parts), strict=True)
        finally:
            for place in self._places:
                place.interrupted.set()
            pool.shutdown(cancel_futures=True)
            for place in self._places:
                place.interrupted.clear()

    def _make_parts_smaller(self, task: LocalTraining, part: Slots, error: str) -> None:
        if len(part) == 1:
            raise TrainingError(
                f"out of memory while client {task.clients[part[0]]} trained alone in round {task.round}: {error}",
                hint="lower training.batch_size",
                client=task.clients[part[0]],
                round=task.round,
            )
        self.fitting = (len(part) + 1) // 2
        for place in self._places:
            place.free()


def _split(slots: Slots, size: int) -> list[Slots]:
    return [slots[start : start + size] for start in range(0, len(slots), size)]
