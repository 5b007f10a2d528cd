"""A small decoder that predicts the next token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fedmr_merge.federated.models._transformer import Blocks, Transformer


@dataclass(frozen=True)
class Gpt(Transformer):
    """A transformer decoder with GPT-2's blocks and initial weights (Radford et al. 2019): it attends to the past.

    It takes sequences of the length that the data have. The last layer has weights of its own. There is no
    dropout: a local step draws no random numbers, so that every engine takes the same step.
    """

    def build(self, shape: tuple[int, int], outputs: int) -> nn.Module:
        """Return the module; at every position it gives logits of the next token."""
        self.require_divisible()
        return _Gpt(self, shape, outputs)


class _Gpt(nn.Module):
    def __init__(self, options: Gpt, shape: tuple[int, int], outputs: int) -> None:
        super().__init__()
        self.transformer = Blocks(options, *shape, causal=True)
        self.head = nn.Linear(options.width, outputs, bias=False)
        self.transformer.reset()
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.transformer(input_ids, attention_mask))
        return logits
