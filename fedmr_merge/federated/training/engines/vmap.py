"""Train the whole cohort at once, which is fastest on a GPU.

Models and their statistics are stacked, [clients, ...], and a local step is one pass over as many clients as have a
batch of the same size to go through: see `_stacked.py`. No batch is padded or masked, so that batch normalisation sees
what it sees in `loop`. Clients are sorted by their number of full batches: those that are still busy in an epoch are
always the first ones, and a step works on a slice of the stack, in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedmr_merge.errors import TrainingError, shown
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.protocol import Context
from fedmr_merge.federated.training.engines._part import Losses, Part
from fedmr_merge.federated.training.engines._plan import processing_order
from fedmr_merge.federated.training.engines._recording import Record, RecordedStep, cuda_graph
from fedmr_merge.federated.training.engines._stack import Stack
from fedmr_merge.federated.training.engines._step import LossOf, is_out_of_memory, own_draws, tensor_cores
from fedmr_merge.federated.training.local_training import Engine, LocalTraining
from fedmr_merge.seeds import derive_seed


class Vmap(Engine):
    """Trains the models of a cohort together, in as many parts as memory asks for."""

    def __init__(self, fitting: int | None = None, record: Record | None = None) -> None:
        """Train at most `fitting` clients at once, where an earlier round found that no more fit into memory.

        Steps are recorded by `record`; by default they are on a GPU, where `training.compile` says so.
        """
        self.fitting = fitting
        self._record = record
        self._written, self._compiled = (LossOf(mapped=True, compiled=compiled) for compiled in (False, True))
        self._kept_for: tuple[Any, ...] = ()
        self._kept: dict[int, tuple[Stack, dict[int, RecordedStep]]] = {}

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
        self._kept.clear()
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
            stack, recorded = self._memory(task, len(part))
            stack.load(task, part)
            means = Part(task, part, stack).train(self._losses(task), recorded)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Not the error itself: its traceback would keep the tensors of the step that failed.
            return shown((str(error).strip() or "no reason given").splitlines()[0])
        # A tensor: torch would copy a list to the device once for every name.
        rows = torch.tensor(part, device=losses.device)
        for name, tensor in stack.weights.items():
            trained[name].index_copy_(0, rows, tensor.detach())
        losses.index_copy_(0, rows, means)
        return None

    def _losses(self, task: LocalTraining) -> Losses:
        forward, compiles = task.federation.training_forward, task.federation.training.compile
        written = self._written(task, forward)
        return Losses(written, self._compiled(task, forward) if compiles else None, self._recorder(task))

    def _recorder(self, task: LocalTraining) -> Record | None:
        federation = task.federation
        on_gpu = federation.training.compile and federation.device.type == "cuda"
        return cuda_graph if self._record is None and on_gpu else self._record

    def _memory(self, task: LocalTraining, clients: int) -> tuple[Stack, dict[int, RecordedStep]]:
        """Return memory for so many clients, and the steps that were recorded on it.

        It is kept where there are such. They hold for one learning rate, and for what a method gives its clients.
        """
        if self._recorder(task) is None:
            return Stack(task, clients), {}
        kept_for = (task.federation, task.algorithm, task.learning_rate, _shapes(task.context))
        if kept_for != self._kept_for:
            self._kept.clear()
            self._kept_for = kept_for
        if clients not in self._kept:
            self._kept[clients] = Stack(task, clients), {}
        return self._kept[clients]


def _shapes(context: Context) -> tuple[Any, ...]:
    return tuple(
        (family, name, tensor.shape, tensor.dtype)
        for families in (context.shared, context.own)
        for family, tensors in families.items()
        for name, tensor in tensors.items()
    )
