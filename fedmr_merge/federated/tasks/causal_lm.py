"""The next token of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.data.tokens import IGNORED
from fedmr_merge.federated.metrics import Metric
from fedmr_merge.federated.tasks.base import Loss, Task
from fedmr_merge.federated.training.options import Training

_LARGEST_EXPONENT = 700.0  # of a float64


@dataclass(frozen=True)
class CausalLm(Task):
    """Predict the next token of a text from those before it. The loss is the mean cross-entropy of a token, padding
    left out; the metrics are the perplexity, which is the exponential of that mean over all tokens, and this mean.
    """

    pipeline_tag = "text-generation"
    metrics = (Metric("perplexity", higher_is_better=False), Metric("loss", higher_is_better=False))
    widget = ({"text": "Once upon a time"},)
    kinds = ("tokens",)

    def check(self, data: Data, training: Training) -> None:
        """Raise DataError for targets that are not the next tokens, TrainingError for weights of classes."""
        super().check(data, training)
        if data.targets("train").dim() != 2:
            raise DataError(
                "task causal-lm needs the next token of every place, and these data have one target for each example",
                hint="leave the column of labels out, or choose another task",
            )
        self.refuse_options_of_classes(training, "class_weights")

    def outputs(self, data: Data) -> int:
        """Return the number of different tokens."""
        return data.example_shape[1]

    def loss(self, data: Data, training: Training) -> Loss:
        """Return the mean cross-entropy of the tokens of a batch, smoothed as the options say."""
        smoothing = training.label_smoothing

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            total, tokens = _cross_entropy(outputs, targets, smoothing)
            return total / tokens

        return loss

    def example_weights(self, targets: Tensor) -> Tensor:
        """Return the number of tokens of every text, padding left out."""
        return (targets != IGNORED).sum(dim=-1)

    def totals(self, outputs: Tensor, targets: Tensor, data: Data) -> Tensor:
        """Return the sum of the cross-entropies, and the number of tokens."""
        return torch.stack([part.double() for part in _cross_entropy(outputs.float(), targets, 0.0)])

    def summary(self, totals: Sequence[float], examples: int, data: Data) -> dict[str, float]:
        """Return perplexity and mean cross-entropy of a token."""
        total, tokens = totals
        loss = total / tokens
        return {"perplexity": math.exp(min(loss, _LARGEST_EXPONENT)), "loss": loss}


def _cross_entropy(outputs: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of logits [..., tokens], and how many targets [...] are not ignored.

    Written out: torch's own has no rule by which `vmap` could map it with ignored targets and smoothing.
    """
    counted = targets != IGNORED
    likelihoods = outputs.log_softmax(dim=-1)
    losses = -likelihoods.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * likelihoods.mean(dim=-1)
    return (losses * counted).sum(), counted.sum()
