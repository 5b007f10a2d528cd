"""Evaluate a model on held-out data, and estimate the statistics of its batch normalisations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Weights
from fedmr_merge.federated.data.examples import Inputs, Part
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.training.precision import float32_products

_BATCH_SIZE = 200
"""The same everywhere: another one could round otherwise. Larger ones leave a CPU's caches, smaller ones a GPU idle."""

_LARGEST_OUTPUT = 1 << 25
"""Numbers that a batch puts out at most: sequences with a large vocabulary are evaluated in smaller batches."""

_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on some examples."""

    metrics: Mapping[str, float]  #: the metrics of the task by name, `loss` among them
    examples: int
    details: Mapping[str, Any] = field(default_factory=dict)  #: what the task says besides, where it was asked for


def evaluate(
    federation: Federation,
    weights: Weights,
    part: Part = "test",
    indices: Tensor | None = None,
    *,
    in_detail: bool = False,
) -> Evaluation:
    """Evaluate a model on a part of the data, or on these of its examples.

    Args:
        federation: Whose task and data it is evaluated on.
        weights: The model, on the federation's device.
        part: The part of the data.
        indices: If given, which examples of the part, int64 [examples].
        in_detail: Also return what the task says besides its metrics, e.g. the accuracy on each class.
    """
    task, data = federation.task, federation.data
    totals: Tensor | None = None
    tally: Tensor | None = None
    examples = data.examples(part) if indices is None else len(indices)
    with float32_products():
        for outputs, targets in predictions(federation, weights, part, indices):
            added = task.totals(outputs, targets, data)
            totals = added if totals is None else totals + added
            counted = task.tally(outputs, targets, data) if in_detail else None
            tally = counted if tally is None or counted is None else tally + counted
    assert totals is not None
    # One copy from a GPU, which is waited for.
    metrics = task.summary(totals.tolist(), examples, data)
    return Evaluation(metrics, examples, task.details(tally, data) if in_detail else {})


def predictions(
    federation: Federation, weights: Weights, part: Part, indices: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the outputs of a model and the targets, batch by batch."""
    data, forward = federation.data, federation.evaluation_forward
    targets = data.targets(part)
    outputs = federation.task.outputs(data) * max(1, targets[:1].numel())
    size = max(1, min(_BATCH_SIZE, _LARGEST_OUTPUT // outputs))
    wheres: Iterable[Tensor | slice] = (
        torch.split(indices, size)
        if indices is not None
        else (slice(start, start + size) for start in range(0, len(targets), size))
    )
    for where in wheres:
        with torch.inference_mode():
            yield forward(weights, forward.laid_out(data.inputs(part, where))), targets[where]


def require_recalibration_batches(federation: Federation, batches: int) -> None:
    """Raise TrainingError when the clients do not have so many batches of `training.batch_size` examples."""
    examples, size = sum(federation.partition.sizes), federation.training.batch_size
    if batches * size > examples:
        raise TrainingError(
            f"{batches} batches of {size} examples cannot be had from the clients' {examples}",
            hint=f"recalibrate with at most {examples // size} batches",
        )


def recalibration_batches(federation: Federation, batches: int) -> Iterator[Inputs]:
    """Yield so many batches of the clients' training examples, not augmented, in an order of their own.

    Each holds `training.batch_size` examples of all clients together. Raises TrainingError when there are fewer.
    """
    require_recalibration_batches(federation, batches)
    examples = np.concatenate(federation.partition.clients)
    size = federation.training.batch_size
    order = federation.generator("recalibration").permutation(examples)[: batches * size]
    data = federation.data
    for indices in torch.split(torch.from_numpy(order).to(data.device), size):
        yield data.inputs("train", indices)


def recalibrate(module: nn.Module, weights: Weights, batches: Iterable[Inputs]) -> dict[str, Tensor]:
    """Estimate the statistics of a model's batch normalisations anew, as means over batches of examples.

    The mean of several models has weights that none of them had, and the mean of their statistics describes no
    network's activations. Everything else stays as it is; so does the model without such statistics.
    """
    norms = [
        f"{name}." if name else ""
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats
    ]
    names = [norm + statistic for norm in norms for statistic in _STATISTICS]
    result = dict(weights)
    if not names:
        return result
    estimating = _whole_momentum(module)
    totals = {name: torch.zeros_like(weights[name], dtype=torch.float64) for name in names}
    count = 0
    with torch.inference_mode(), float32_products():
        for inputs in batches:
            # With a momentum of 1 a batch's statistics replace those before, so that each batch counts alike.
            passed = {name: tensor.clone() for name, tensor in weights.items()}
            if isinstance(inputs, Tensor):
                torch.func.functional_call(estimating, passed, (inputs,))
            else:
                torch.func.functional_call(estimating, passed, (), dict(inputs))
            for name in names:
                totals[name] += passed[name]
            count += 1
    if not count:
        raise TrainingError("statistics cannot be estimated from no batches")
    for name, total in totals.items():
        result[name] = (total / count).to(weights[name].dtype)
    return result


def _whole_momentum(module: nn.Module) -> nn.Module:
    """Return a copy whose batch normalisations alone are in training mode, with a momentum of 1: nothing is dropped."""
    copy = deepcopy(module).eval()
    for part in copy.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.train()
            part.momentum = 1.0
    return copy
