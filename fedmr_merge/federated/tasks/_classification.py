"""What tasks have in common whose targets are classes: the cross-entropy, accuracy, and who is taken for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmr_merge.errors import DataError, TrainingError
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.metrics import ACCURACY, Metric
from fedmr_merge.federated.tasks.base import Loss, Task
from fedmr_merge.federated.training.options import Training


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """The cross-entropy of a batch as torch has it: with class weights, a mean that is weighted by them."""

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None  #: [classes], on the device of the logits

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits [batch, classes] and labels [batch]."""
        if self.class_weights is None and not self.label_smoothing:
            return F.cross_entropy(logits, labels)
        # Written out: torch's own has no rule by which `vmap` could map it with these options.
        classes = logits.shape[-1]
        given = F.one_hot(labels, classes).to(torch.float32)
        weights = torch.ones_like(given) if self.class_weights is None else self.class_weights.expand_as(given)
        smoothed = (1 - self.label_smoothing) * given + self.label_smoothing / classes
        return -(smoothed * weights * logits.log_softmax(dim=-1)).sum() / (given * weights).sum()


class Classification(Task):
    """Base of the tasks in which every example belongs to one class."""

    metrics = (ACCURACY, Metric("loss", higher_is_better=False))

    def check(self, data: Data, training: Training) -> None:
        """Raise DataError for targets that are not classes, TrainingError for other weights than one for each class."""
        super().check(data, training)
        classes, weights = data.num_classes, training.class_weights
        if not classes:
            raise DataError(
                f"task {self.name} needs examples with a class each, and the targets of these data are not classes",
                hint="choose another task or data set",
            )
        if weights is not None and len(weights) != classes:
            raise TrainingError(
                f"training.class_weights has {len(weights)} weights, and the data has {classes} classes",
                hint="give one weight for each class, in the order of their numbers",
            )

    def outputs(self, data: Data) -> int:
        """Return the number of classes."""
        return data.num_classes

    def loss(self, data: Data, training: Training) -> Loss:
        """Return the cross-entropy, smoothed and weighted as the options say."""
        weights = training.class_weights
        return CrossEntropy(
            training.label_smoothing, None if weights is None else torch.tensor(weights, device=data.device)
        )

    def totals(self, outputs: Tensor, targets: Tensor, data: Data) -> Tensor:
        """Return how many examples have their largest logit at their label, and the sum of their cross-entropies."""
        right = (outputs.argmax(dim=1) == targets).sum()
        return torch.stack([right.double(), F.cross_entropy(outputs.float(), targets, reduction="sum").double()])

    def summary(self, totals: Sequence[float], examples: int, data: Data) -> dict[str, float]:
        """Return accuracy, 0 to 1, and mean cross-entropy."""
        right, loss = totals
        return {"accuracy": right / examples, "loss": loss / examples}

    def tally(self, outputs: Tensor, targets: Tensor, data: Data) -> Tensor:
        """Return how many examples of each class are taken for which: int64 [label, predicted]."""
        pairs = targets.cpu() * data.num_classes + outputs.argmax(dim=1).cpu()
        counts = torch.bincount(pairs, minlength=data.num_classes**2)
        return counts.view(data.num_classes, data.num_classes)

    def details(self, tally: Tensor | None, data: Data) -> dict[str, Any]:
        """Return the classes, how many examples each has, the accuracy on it (None without examples), and the tally."""
        assert tally is not None
        rows = tally.tolist()
        return {
            "class_names": list(data.class_names),
            "class_examples": [sum(row) for row in rows],
            "class_accuracy": [row[label] / sum(row) if sum(row) else None for label, row in enumerate(rows)],
            "confusion": rows,
        }
