"""Sequences of tokens, each with a class or with the tokens that come next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fedmr_merge.federated.data.tensors import TensorData
from fedmr_merge.federated.data.tokenizers import Tokenizer
from fedmr_merge.hub.inputs import public_name

IGNORED = -100
"""The target of a place that counts in no loss: it is padding. Torch and transformers have the same number."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenData(TensorData):
    """Texts: inputs are input_ids, int64 [examples, length], and, where some are padded, attention_mask, bool.

    Targets are int64 classes [examples], or the next token of every place [examples, length] with IGNORED at padding.
    """

    kind: ClassVar[str] = "tokens"

    tokenizer: Tokenizer
    length: int  #: of every sequence, in tokens

    @property
    def example_shape(self) -> tuple[int, int]:
        """The length of a sequence and the number of different tokens."""
        return self.length, self.tokenizer.vocabulary

    def preprocess(self) -> dict[str, Any]:
        """Return how a text becomes tokens."""
        return {"tokenizer": public_name(self.tokenizer.name), "length": self.length}

    def write_sidecars(self, folder: Path) -> None:
        """Write the files of the tokenizer beside a model."""
        self.tokenizer.save(folder)
