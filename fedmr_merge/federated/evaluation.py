"""How good one model is on held-out data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fedmr_merge.federated.cohort import Weights
from fedmr_merge.federated.data import ImageData
from fedmr_merge.federated.forward import Forward

_BATCH_SIZE = 500
"""The same everywhere: another one could round otherwise."""


@dataclass(frozen=True)
class Evaluation:
    """How a model does on the test part."""

    accuracy: float  #: share of examples whose largest logit is the label's, 0 to 1
    loss: float  #: mean cross-entropy
    examples: int


def evaluate(forward: Forward, weights: Weights, data: ImageData) -> Evaluation:
    """Evaluate a model on the test images; `forward` must be in evaluation mode."""
    correct = torch.zeros((), dtype=torch.int64, device=data.device)
    loss = torch.zeros((), dtype=torch.float64, device=data.device)
    with torch.inference_mode():
        for images, labels in zip(
            torch.split(data.test_images, _BATCH_SIZE), torch.split(data.test_labels, _BATCH_SIZE), strict=True
        ):
            logits = forward(weights, data.normalise(images))
            correct += (logits.argmax(dim=1) == labels).sum()
            loss += F.cross_entropy(logits.float(), labels, reduction="sum")
    examples = len(data.test_labels)
    return Evaluation(accuracy=int(correct) / examples, loss=float(loss) / examples, examples=examples)
