"""The blocks of the small transformers: pre-normalised self-attention and a feed-forward network.

Attention is written out: `vmap` maps it for the models of a cohort, and these models are small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.models.base import Architecture

_DEVIATION = 0.02  # of initial weights, as in GPT-2


@dataclass(frozen=True)
class Transformer(Architecture):
    """Base of the small transformers."""

    width: Annotated[int, Ge(1), Le(65_536)] = 64  #: of the vector of each place
    depth: Annotated[int, Ge(1), Le(1_000)] = 2  #: blocks, one after the other
    heads: Annotated[int, Ge(1), Le(1_000)] = 4  #: of the self-attention of a block; they divide the width

    takes = "tokens"
    normalisation_first = True

    def require_divisible(self) -> None:
        """Raise TrainingError when the heads do not divide the width."""
        if self.width % self.heads:
            raise TrainingError(
                f"model {self.name}: {self.heads} heads do not divide a width of {self.width}",
                hint="choose model.heads and model.width so that they do",
            )


class Blocks(nn.Module):
    """Embeddings of tokens and positions, blocks and a last normalisation: from tokens to vectors by position."""

    def __init__(self, options: Transformer, length: int, vocabulary: int, *, causal: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, options.width)
        self.positions = nn.Embedding(length, options.width)
        self.blocks = nn.ModuleList(_Block(options.width, options.heads, causal=causal) for _ in range(options.depth))
        self.norm = nn.LayerNorm(options.width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Map token numbers [batch, length] to vectors [batch, length, width]; padding is masked as not True."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        values = self.tokens(input_ids) + self.positions(positions)
        for block in self.blocks:
            values = block(values, attention_mask)
        result: Tensor = self.norm(values)
        return result

    def reset(self) -> None:
        """Draw the initial weights as GPT-2 does: what is added to a place by each block is made smaller."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                added = name.endswith(("attention.out.weight", "down.weight"))
                nn.init.normal_(parameter, std=_DEVIATION / math.sqrt(2 * len(self.blocks)) if added else _DEVIATION)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        values = values + self.attention(self.norm1(values), mask)
        result: Tensor = values + self.down(F.gelu(self.up(self.norm2(values))))
        return result


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, width = values.shape
        apart = self.into(values).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = apart.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-2, -1) / math.sqrt(width // self.heads)
        seen = torch.ones(length, length, dtype=torch.bool, device=values.device)
        if self.causal:
            seen = seen.tril()
        seen = seen if mask is None else seen & mask[:, None, None, :]
        # Not -inf: a place that may look at none, in a sequence that is all padding, would be NaN.
        weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(dim=-1)
        result: Tensor = self.out((weights @ value).transpose(1, 2).reshape(batch, length, width))
        return result
