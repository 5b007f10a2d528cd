"""The loss of the clients' own examples, which every method trains on, alone or beside terms of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
