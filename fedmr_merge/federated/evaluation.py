"""Evaluate a model on held-out data, and estimate the statistics of its batch normalisations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Weights
from fedmr_merge.federated.data.images import ImageData
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.training.forward import Forward
from fedmr_merge.federated.training.precision import float32_products

_BATCH_SIZE = 200
"""The same everywhere: another one could round otherwise. Larger ones leave a CPU's caches, smaller ones a GPU idle."""

_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Evaluation:
    """The accuracy and loss of a model on the test images."""

    accuracy: float  #: share of examples whose largest logit is the label's, 0 to 1
    loss: float  #: mean cross-entropy
    examples: int


@dataclass(frozen=True)
class ClassEvaluation(Evaluation):
    """The accuracy and loss of a model on the test images, class by class."""

    confusion: tuple[tuple[int, ...], ...]
    """`confusion[label][predicted]`: how many examples of a class were taken for which; the rows are the labels."""

    @property
    def class_examples(self) -> tuple[int, ...]:
        """The number of test examples of every class."""
        return tuple(sum(row) for row in self.confusion)

    @property
    def class_accuracy(self) -> tuple[float | None, ...]:
        """The accuracy on every class, 0 to 1; None for a class without test examples."""
        return tuple(row[label] / sum(row) if sum(row) else None for label, row in enumerate(self.confusion))


def evaluate(forward: Forward, weights: Weights, data: ImageData) -> Evaluation:
    """Evaluate a model on the test images; `forward` must be in evaluation mode."""
    correct = torch.zeros((), dtype=torch.int64, device=data.device)
    loss = torch.zeros((), dtype=torch.float64, device=data.device)
    with float32_products():
        for part in _predict(forward, weights, data):
            correct += (part.predicted == part.labels).sum()
            loss += part.loss
    examples = len(data.test_labels)
    # One copy from a GPU, which is waited for; a number of examples is exact in float64.
    right, total = torch.stack([correct.double(), loss]).tolist()
    return Evaluation(accuracy=right / examples, loss=total / examples, examples=examples)


def evaluate_by_class(forward: Forward, weights: Weights, data: ImageData) -> ClassEvaluation:
    """Evaluate a model on the test images and count which class is taken for which; see `evaluate`."""
    counts = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64)
    loss = torch.zeros((), dtype=torch.float64, device=data.device)
    with float32_products():
        for part in _predict(forward, weights, data):
            pairs = part.labels.cpu() * data.num_classes + part.predicted.cpu()
            counts += torch.bincount(pairs, minlength=counts.numel()).view_as(counts)
            loss += part.loss
    examples = len(data.test_labels)
    return ClassEvaluation(
        accuracy=int(counts.diagonal().sum()) / examples,
        loss=float(loss) / examples,
        examples=examples,
        confusion=tuple(tuple(row) for row in counts.tolist()),
    )


class _Part(NamedTuple):
    labels: Tensor
    predicted: Tensor
    loss: Tensor  #: summed over the examples


def _predict(forward: Forward, weights: Weights, data: ImageData) -> Iterator[_Part]:
    for images, labels in zip(
        torch.split(data.test_images, _BATCH_SIZE), torch.split(data.test_labels, _BATCH_SIZE), strict=True
    ):
        with torch.inference_mode():
            logits = forward(weights, forward.laid_out(data.normalise(images)))
            yield _Part(labels, logits.argmax(dim=1), F.cross_entropy(logits.float(), labels, reduction="sum"))


def require_recalibration_batches(federation: Federation, batches: int) -> None:
    """Raise TrainingError when the clients do not have so many batches of `training.batch_size` examples."""
    examples, size = sum(federation.partition.sizes), federation.training.batch_size
    if batches * size > examples:
        raise TrainingError(
            f"{batches} batches of {size} examples cannot be had from the clients' {examples}",
            hint=f"recalibrate with at most {examples // size} batches",
        )


def recalibration_batches(federation: Federation, batches: int) -> Iterator[Tensor]:
    """Yield so many batches of the clients' training images, normalised and not augmented, in an order of their own.

    Each holds `training.batch_size` examples of all clients together. Raises TrainingError when there are fewer.
    """
    require_recalibration_batches(federation, batches)
    examples = np.concatenate(federation.partition.clients)
    size = federation.training.batch_size
    order = federation.generator("recalibration").permutation(examples)[: batches * size]
    data = federation.data
    for indices in torch.split(torch.from_numpy(order).to(data.device), size):
        yield data.normalise(data.train_images[indices])


def recalibrate(module: nn.Module, weights: Weights, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Estimate the statistics of a model's batch normalisations anew, as means over batches of normalised images.

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
    training = _whole_momentum(module)
    totals = {name: torch.zeros_like(weights[name], dtype=torch.float64) for name in names}
    count = 0
    with torch.inference_mode(), float32_products():
        for images in batches:
            # With a momentum of 1 a batch's statistics replace those before, so that each batch counts alike.
            passed = {name: tensor.clone() for name, tensor in weights.items()}
            torch.func.functional_call(training, passed, (images,))
            for name in names:
                totals[name] += passed[name]
            count += 1
    if not count:
        raise TrainingError("statistics cannot be estimated from no batches")
    for name, total in totals.items():
        result[name] = (total / count).to(weights[name].dtype)
    return result


def _whole_momentum(module: nn.Module) -> nn.Module:
    training = deepcopy(module).train()
    for part in training.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = 1.0
    return training
