"""A small encoder that classifies a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmr_merge.federated.models._transformer import Blocks, Transformer
from fedmr_merge.federated.models.base import Classifier


@dataclass(frozen=True)
class TextClassifier(Transformer):
    """A transformer encoder; the mean of its outputs over the tokens of a text is classified.

    The blocks and initial weights are GPT-2's. Padding is masked: how far a text is padded changes nothing.
    """

    def build(self, shape: tuple[int, int], outputs: int) -> Classifier:
        """Return the module; `features` are the mean over the tokens that are not padding."""
        self.require_divisible()
        return _TextClassifier(self, shape, outputs)


class _TextClassifier(Classifier):
    def __init__(self, options: TextClassifier, shape: tuple[int, int], outputs: int) -> None:
        super().__init__()
        self.transformer = Blocks(options, *shape, causal=False)
        self.out = nn.Linear(options.width, outputs)
        self.transformer.reset()
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        values: Tensor = self.transformer(input_ids, attention_mask)
        if attention_mask is None:
            return values.mean(dim=1)
        kept = attention_mask.to(values.dtype)[..., None]
        return (values * kept).sum(dim=1) / torch.clamp(kept.sum(dim=1), min=1)

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.out(features)
        return logits

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.features(input_ids, attention_mask))
