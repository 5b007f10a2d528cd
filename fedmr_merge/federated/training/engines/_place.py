"""A device on which clients of a cohort are trained together, with what is kept there from round to round."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedmr_merge.errors import shown
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Context
from fedmr_merge.federated.training.engines._part import Losses, Part
from fedmr_merge.federated.training.engines._recording import Record, RecordedStep, cuda_graph
from fedmr_merge.federated.training.engines._stack import Stack
from fedmr_merge.federated.training.engines._step import LossOf, is_out_of_memory
from fedmr_merge.federated.training.local_training import LocalTraining
from fedmr_merge.seeds import derive_seed


class Place:
    """Trains parts of a cohort, one after the other, on one device."""

    def __init__(self, federation: Federation, record: Record | None) -> None:
        """Train on the federation's device; `record` records steps there, by default on a GPU with `compile`."""
        self._federation = federation
        on_gpu = federation.training.compile and federation.device.type == "cuda"
        self._record = cuda_graph if record is None and on_gpu else record
        self._written, self._compiled = (LossOf(mapped=True, compiled=compiled) for compiled in (False, True))
        self.interrupted = threading.Event()
        """When it is set, training ends after the next step, with models that are of no use."""
        self._kept_for: tuple[Any, ...] = ()
        self._kept: dict[int, tuple[Stack, dict[int, RecordedStep]]] = {}

    def train(
        self, task: LocalTraining, part: Sequence[int], trained: Mapping[str, Tensor], losses: Tensor
    ) -> str | None:
        """Train the slots of a part and write down their models and losses; return torch's words when memory ran out.

        What was dispatched is never written to, so that a part can be trained again, in smaller ones.
        """
        here = task if task.federation is self._federation else replace(task, federation=self._federation)
        with _on(self._federation.device):
            self._seed(derive_seed(here.federation.seed, "local training", here.round, here.clients[part[0]]))
            try:
                stack, recorded = self._memory(here, len(part))
                stack.load(here, part)
                means = Part(here, part, stack, self.interrupted).train(self._losses(here), recorded)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                # Not the error itself: its traceback would keep the tensors of the step that failed.
                return shown((str(error).strip() or "no reason given").splitlines()[0])
            # A tensor: torch would copy a list to the device once for every name.
            rows = torch.tensor(part, device=losses.device)
            for name, tensor in stack.weights.items():
                trained[name].index_copy_(0, rows, tensor.detach().to(losses.device))
            losses.index_copy_(0, rows, means.to(losses.device))
        return None

    def free(self) -> None:
        """Give back the memory that is kept."""
        self._kept.clear()
        if self._federation.device.type == "cuda":
            with _on(self._federation.device):
                torch.cuda.empty_cache()

    def _seed(self, seed: int) -> None:
        """Seed what a model may draw from: where each GPU has a thread of its own, that GPU's generator alone."""
        if self._federation.device.index is None:
            torch.manual_seed(seed)
        else:
            torch.cuda.manual_seed(seed)

    def _losses(self, task: LocalTraining) -> Losses:
        forward = task.federation.training_forward
        compiled = self._compiled(task, forward) if task.federation.training.compile else None
        return Losses(self._written(task, forward), compiled, self._record)

    def _memory(self, task: LocalTraining, clients: int) -> tuple[Stack, dict[int, RecordedStep]]:
        """Return memory for so many clients, and the steps that were recorded on it.

        It is kept where there are such. They hold for one learning rate, and for what a method gives its clients.
        """
        if self._record is None:
            return Stack(task, clients), {}
        kept_for = (task.algorithm, task.learning_rate, _shapes(task.context))
        if kept_for != self._kept_for:
            self._kept.clear()
            self._kept_for = kept_for
        if clients not in self._kept:
            self._kept[clients] = Stack(task, clients), {}
        return self._kept[clients]


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Let new tensors and kernels of this thread be on a GPU, where it is one of several."""
    if device.type == "cuda" and device.index is not None:
        with torch.cuda.device(device):
            yield
    else:
        yield


def _shapes(context: Context) -> tuple[Any, ...]:
    return tuple(
        (family, name, tensor.shape, tensor.dtype)
        for families in (context.shared, context.own)
        for family, tensors in families.items()
        for name, tensor in tensors.items()
    )
