"""Any set of texts, to be classified or to be continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets._packing import cut, packed
from fedmr_merge.federated.data.datasets._rows import TEXT, Rows
from fedmr_merge.federated.data.datasets._splits import RowsDataSet, read_labels
from fedmr_merge.federated.data.tensors import Examples
from fedmr_merge.federated.data.tokenizers import BYTES, Tokenizer, open_tokenizer
from fedmr_merge.federated.data.tokens import TokenData


@dataclass(frozen=True, kw_only=True)
class Text(RowsDataSet):
    """Texts of CSV, JSON lines, parquet or plain text files, or of the Hub. With a column of labels their task is
    text-classification, otherwise causal-lm.

    A row of a plain text is a paragraph: blank lines part them.
    """

    text_column: str = TEXT  #: the texts
    label_column: str | None = None  #: the classes: numbers, or strings; left out: the next token is predicted
    tokenizer: str = (
        BYTES  #: `bytes`, or a folder or Hub id of a tokenizer of transformers, which is kept with the model
    )
    length: Annotated[int, Ge(2), Le(1_000_000)] = 128  #: tokens in a sequence; a longer text is cut, see packing
    packing: bool = True
    """Of causal-lm: write all texts of a client one after the other and cut that into full sequences; otherwise every
    text is a sequence of its own, cut or padded."""

    @property
    def packages(self) -> tuple[str, ...]:
        """What the tokenizer belongs to."""
        return () if self.tokenizer == BYTES else ("transformers", "tokenizers")

    @property
    def task(self) -> str:
        """Classification where there are labels."""
        return "causal-lm" if self.label_column is None else "text-classification"

    def load(self) -> TokenData:
        """Return the data."""
        columns = [self.text_column, *([self.label_column] if self.label_column else [])]
        train, test = self.read(columns, self.label_column)
        tokenizer = open_tokenizer(self.tokenizer)
        return (
            self._next_tokens(train, test, tokenizer)
            if self.label_column is None
            else self._classes(train, test, tokenizer)
        )

    def _classes(self, train: Rows, test: Rows, tokenizer: Tokenizer) -> TokenData:
        labels = read_labels(train, test, str(self.label_column))
        parts, notes = [], []
        for name, rows, targets in (("training", train, labels.train), ("test", test, labels.test)):
            tokens, long = tokenizer.encode_whole(self._texts(rows), self.length)
            if long:
                notes.append(
                    f"{long:,} of {len(tokens):,} {name} texts have more than {self.length} tokens and are cut"
                )
            ids, mask = cut(tokens, self.length, tokenizer.padding)
            inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            parts.append(Examples(inputs, torch.from_numpy(targets)))
        return self._data(parts, tokenizer, self.clients(train), notes, labels.names)

    def _next_tokens(self, train: Rows, test: Rows, tokenizer: Tokenizer) -> TokenData:
        clients = self.clients(train)
        parts, owners = [], None
        for rows, whose in ((train, clients), (test, None)):
            tokens = tokenizer.encode(self._texts(rows))
            whose = np.zeros(len(tokens), dtype=np.int64) if whose is None else whose
            ids, targets, found = packed(tokens, whose, self.length, tokenizer, join=self.packing)
            if not len(ids):
                raise DataError(f"{rows.source}: has not a single pair of tokens", path=rows.source)
            owners = found if owners is None else owners
            parts.append(Examples({"input_ids": torch.from_numpy(ids)}, torch.from_numpy(targets)))
        return self._data(parts, tokenizer, owners if clients is not None else None, (), ())

    def _texts(self, rows: Rows) -> list[str]:
        found = rows.column(self.text_column)
        for row, value in enumerate(found):
            if not isinstance(value, str):
                raise DataError(
                    f"{rows.source}: column {self.text_column!r}, row {row + 1}: is not a text",
                    hint="name the column of the texts in data.text_column",
                    column=self.text_column,
                )
        return list(found)

    def _data(
        self,
        parts: Sequence[Examples],
        tokenizer: Tokenizer,
        clients: NDArray[np.int64] | None,
        notes: Sequence[str],
        class_names: Sequence[str],
    ) -> TokenData:
        return TokenData(
            train=parts[0],
            test=parts[1],
            class_names=tuple(class_names),
            train_clients=None if clients is None else torch.from_numpy(clients),
            notes=tuple(notes),
            tokenizer=tokenizer,
            length=self.length,
        )
