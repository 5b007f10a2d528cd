"""Rows of a table and texts, as people have them, → what a published model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmr_merge.errors import CheckpointError
from fedmr_merge.federated.data.tokenizers import BYTES, Tokenizer, open_tokenizer
from fedmr_merge.publish.preprocess import Preprocess

_OF_A_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


@dataclass(frozen=True)
class RowPreprocess:
    """Turn rows of a table into the input of a model: the features in their order, standardised.

    Examples:
        >>> preprocess = RowPreprocess(features=["age", "height"], mean=[40.0, 1.5], std=[10.0, 0.5])
        >>> preprocess({"height": 2.0, "age": 30})
        tensor([[-1.,  1.]])
    """

    features: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]
    target: Mapping[str, Any] | None = None  #: of a number that is predicted: its name, mean and std

    def __call__(self, rows: Mapping[str, float] | Sequence[Any] | Tensor) -> Tensor:
        """Return float32 [batch, features] of a row, by name or in order, or of several.

        Raises ValueError for other features than the model's.
        """
        several = rows if isinstance(rows, Sequence) and rows and not isinstance(rows[0], int | float) else [rows]
        if isinstance(rows, Tensor):
            several = list(rows) if rows.dim() == 2 else [rows]
        numbers = torch.stack([torch.as_tensor(self._ordered(row), dtype=torch.float64) for row in several])
        if numbers.shape[1:] != (len(self.features),):
            raise ValueError(f"the model takes {len(self.features)} features, found {list(numbers.shape[1:])}")
        standardised = (numbers - torch.tensor(self.mean, dtype=torch.float64)) / torch.tensor(
            self.std, dtype=torch.float64
        )
        return standardised.to(torch.float32)

    def predicted(self, outputs: Tensor) -> Tensor:
        """Return the outputs of a model that predicts numbers in the units of the table, [batch]."""
        if self.target is None:
            raise ValueError("the outputs of this model are logits of classes")
        std, mean = float(self.target["std"]), float(self.target["mean"])
        return outputs.squeeze(-1) * std + mean

    def _ordered(self, row: Any) -> Any:
        if not isinstance(row, Mapping):
            return row
        missing = [name for name in self.features if name not in row]
        if missing:
            raise ValueError(f"the row has no feature {missing[0]!r}")
        return [row[name] for name in self.features]


@dataclass(frozen=True)
class TextPreprocess:
    """Turn texts into the arguments of a model: `model(**model.preprocess(text))`."""

    tokenizer: str
    length: int
    folder: Path  #: of the model, which has the files of a tokenizer of transformers
    whole: bool = True  #: whether a text is read as a whole, between the marks of its beginning and end

    def __call__(self, texts: str | Sequence[str]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, [batch, tokens]; a text is cut to the length of the model.

        Raises CheckpointError or DataError when the tokenizer is not there.
        """
        given = [texts] if isinstance(texts, str) else list(texts)
        opened = self._tokenizer
        tokens = opened.encode_whole(given, self.length)[0] if self.whole else opened.encode(given)
        kept = [text[: self.length].tolist() or [opened.end] for text in tokens]
        longest = max(map(len, kept))
        ids = [text + [opened.padding] * (longest - len(text)) for text in kept]
        mask = [[True] * len(text) + [False] * (longest - len(text)) for text in kept]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if any((self.folder / name).is_file() for name in _OF_A_TOKENIZER):
            return open_tokenizer(str(self.folder))
        if self.tokenizer != BYTES:
            raise CheckpointError(
                self.folder, "the files of its tokenizer are not there", hint="download all its files"
            )
        return open_tokenizer(BYTES)


def preprocess_of(config: Mapping[str, Any], folder: Path) -> Preprocess | RowPreprocess | TextPreprocess | None:
    """Return what turns an example into the input of the model of a folder; None where its config does not say.

    Raises CheckpointError when the config says it otherwise than this package writes it.
    """
    kind = config["input"].get("kind") if "input" in config else "images"
    options = config.get("preprocess")
    try:
        if kind == "images":
            return Preprocess(**{key: options[key] for key in ("mean", "std", "size")})  # type: ignore[index]
        if kind == "features":
            return RowPreprocess(**options)  # type: ignore[arg-type]
        if kind == "tokens":
            return TextPreprocess(**options, folder=folder, whole="label_names" in config)  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise CheckpointError(folder, f"the preprocess of config.json is not as it should be: {error}") from error
    return None
