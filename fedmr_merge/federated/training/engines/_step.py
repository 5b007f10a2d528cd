"""The loss of a method on one batch, and the step that follows from its gradients: shared by the engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.cohort import Weights
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Batch, Context
from fedmr_merge.federated.tasks.base import Task
from fedmr_merge.federated.training.engines._stacked import StackedOperations
from fedmr_merge.federated.training.forward import Forward
from fedmr_merge.federated.training.local_training import LocalTraining
from fedmr_merge.federated.training.precision import float32_products

Loss = Callable[[Weights, Batch, Context], Tensor]

_COMPILED = 256
"""How many versions of the loss a process may compile, one for every shape, method and run."""

_OUT_OF_MEMORY = (
    "can't allocate memory",  # on a CPU
    "cuda out of memory",
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "unable to find an engine to execute",  # of cuDNN, where no algorithm's workspace fits
    "hip out of memory",
    "hip error: out of memory",
    "hiperroroutofmemory",
    "hipblas_status_alloc_failed",
    "rocblas_status_memory_error",
    "miopenstatusallocfailed",
)
"""What torch and the libraries below it say when memory ran out, in lower case."""


class LossOf:
    """The loss that clients train on, made once for a method and kept from round to round: compiling takes long."""

    def __init__(self, *, mapped: bool, compiled: bool) -> None:
        """Make losses of one client, or, mapped, of as many as are stacked in their arguments."""
        self._mapped, self._compiled = mapped, compiled
        self._made: tuple[Forward, Algorithm, Loss] | None = None

    def __call__(self, task: LocalTraining, forward: Forward) -> Loss:
        """Return the loss of a task with this forward, at the precision that its `training` says."""
        algorithm = task.algorithm
        if self._made is None or self._made[0] is not forward or self._made[1] is not algorithm:
            self._made = (forward, algorithm, self._make(task.federation, algorithm, forward))
        return self._made[2]

    def _make(self, federation: Federation, algorithm: Algorithm, forward: Forward) -> Loss:
        training = federation.training

        def loss(weights: Weights, batch: Batch, context: Context) -> Tensor:
            return algorithm.objective(forward, weights, batch, context)

        made: Loss = loss
        if self._mapped:
            # A model that draws at random, e.g. by dropout, draws for each client.
            # torch.compile knows `vmap` alone, whose operations it fuses.
            stacked = loss if self._compiled else _written_out(loss)
            made = vmap(stacked, in_dims=(0, 0, Context(shared=None, own=0)), randomness="different")  # type: ignore[arg-type]
        if self._compiled:
            made = _compiled(made)
        return _in_bf16(made, federation.device) if training.precision == "bf16" else made


def _written_out(loss: Loss) -> Loss:
    def written_out(weights: Weights, batch: Batch, context: Context) -> Tensor:
        with StackedOperations():
            return loss(weights, batch, context)

    return written_out


def _compiled(loss: Loss) -> Loss:
    """Compile a loss as a whole. Where torch.compile cannot, it fails: nothing is run as it was written instead."""
    compiled = torch.compile(loss, fullgraph=True)
    config: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before torch 2.7

    def call(weights: Weights, batch: Batch, context: Context) -> Tensor:
        try:
            # torch counts over all runs of a process what is compiled: each has its few shapes.
            with config.patch({limit: _COMPILED}):
                return compiled(weights, batch, context)
        except Exception as error:
            if not type(error).__module__.startswith("torch._dynamo"):
                raise
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            raise TrainingError(
                f"training.compile: torch.compile failed: {reason}", hint="set training.compile to false"
            ) from error

    return call


def _in_bf16(loss: Loss, device: torch.device) -> Loss:
    def in_bf16(weights: Weights, batch: Batch, context: Context) -> Tensor:
        # All threads share one cache of rounded weights, which each empties as it leaves: with it, whether gradients
        # of a weight that is used twice are added up in bfloat16 or float32 would be a matter of luck.
        with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
            return loss(weights, batch, context)

    return in_bf16


def tensor_cores(federation: Federation) -> AbstractContextManager[None]:
    """Let a GPU round the factors of float32 products to TF32, or not, as `training.precision` says."""
    return float32_products(tf32=federation.training.precision == "tf32")


@contextmanager
def own_draws(federation: Federation) -> Iterator[None]:
    """Keep what a model draws at random in training, e.g. by dropout, away from torch's global generators."""
    devices = [device for device in federation.devices if device.type == "cuda"]
    with torch.random.fork_rng(devices=devices):
        yield


def gradients_of(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of a loss; a parameter that it does not depend on has one of zero."""
    return torch.autograd.grad(loss, parameters, materialize_grads=True)


def accumulated(
    task: Task, gradients: Callable[[Tensor], tuple[Sequence[Tensor], Batch]], parts: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Return the gradients of a step on examples that are gone through in parts, one after the other.

    `gradients` computes those of a part, and says which batch it is. The result is their mean, each weighted by what
    its examples weigh in the mean that the task takes; of stacked clients, [clients, ...], each has weights of its own.
    """
    if len(parts) == 1:
        return gradients(parts[0])[0]
    totals: list[Tensor] = []
    for part in parts:
        found, batch = gradients(part)
        of_examples = task.example_weights(batch.targets)
        if of_examples is None:
            of_examples = torch.ones_like(batch.indices)
        weight = of_examples.sum(dim=-1).to(torch.float32)
        weighted = [*(gradient * _beside(weight, gradient) for gradient in found), weight]
        totals = [total.add_(more) for total, more in zip(totals, weighted, strict=True)] if totals else weighted
    *sums, weight = totals
    return [total / _beside(weight, total) for total in sums]


def _beside(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return a weight, or that of each stacked client, in a shape to multiply a gradient by."""
    return weight.view(*weight.shape, *[1] * (gradient.dim() - weight.dim()))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out; torch has a class for it only where it allocated itself."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(wording in message for wording in _OUT_OF_MEMORY)


def sliced(families: Mapping[str, Weights], start: int, stop: int) -> dict[str, dict[str, Tensor]]:
    """Return slots `start` to `stop` - 1 of every tensor; views."""
    return {
        family: {name: tensor[start:stop] for name, tensor in tensors.items()} for family, tensors in families.items()
    }
