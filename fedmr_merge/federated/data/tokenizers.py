"""From a text to the numbers of its tokens: its bytes, or what a tokenizer of transformers makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmr_merge.errors import AbsentDataError, DataError

BYTES = "bytes"
Ids = NDArray[np.integer]
_END, _PADDING = 256, 257  # after the 256 values of a byte


class Tokenizer:
    """Base of the tokenizers."""

    name: str  #: as a recipe spells it
    vocabulary: int  #: the number of different tokens
    end: int  #: the token after a text
    padding: int  #: the token that fills a sequence up

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Return the tokens of each text, without any that mark its beginning or end."""
        raise NotImplementedError

    def encode_whole(self, texts: Sequence[str], length: int) -> tuple[list[Ids], int]:
        """Return the tokens of each text with those that mark its beginning and end, as a model that reads it is fed.

        A text of more than `length` tokens is cut between its marks, and how many are is returned, too. An empty text
        has one token at least.
        """
        found = self.encode(texts)
        return [self._not_empty(tokens[:length]) for tokens in found], sum(len(tokens) > length for tokens in found)

    def _not_empty(self, tokens: Ids) -> Ids:
        return tokens if len(tokens) else np.array([self.end])

    def save(self, folder: Path) -> None:
        """Write the tokenizer's own files into the folder of a model; nothing where its name says all."""


class Bytes(Tokenizer):
    """The bytes of a text in UTF-8: 256 tokens, and one each for the end of a text and for padding."""

    name, vocabulary, end, padding = BYTES, 258, _END, _PADDING

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Return the bytes of each text."""
        try:
            return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts]
        except UnicodeEncodeError as error:
            raise DataError(f"a text has a character that is not Unicode: {error.object[error.start]!r}") from error


class Pretrained(Tokenizer):
    """A tokenizer of transformers, from a folder or the Hub. No code comes with it."""

    def __init__(self, name: str) -> None:
        """Load the tokenizer. Raises DataError when transformers or the tokenizer is not there."""
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise DataError(
                f"the tokenizer {name} needs the library transformers", hint="pip install 'fedmr-merge[text]'"
            ) from error
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise AbsentDataError(
                f"the tokenizer {name} cannot be loaded: {reason[:200]}",
                hint="name a folder with its files, a Hub id that this machine can reach, or `bytes`",
            ) from error
        self.name, self.vocabulary = name, len(self._tokenizer)
        known = {key: getattr(self._tokenizer, f"{key}_token_id") for key in ("eos", "sep", "pad")}
        end = known["eos"] if known["eos"] is not None else known["sep"]
        if end is None:
            raise DataError(f"the tokenizer {name} has no token for the end of a text", hint="choose another tokenizer")
        self.end = int(end)
        self.padding = self.end if known["pad"] is None else int(known["pad"])

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Return the tokens of each text."""
        found = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [np.array(tokens, dtype=np.int32) for tokens in found]

    def encode_whole(self, texts: Sequence[str], length: int) -> tuple[list[Ids], int]:
        """Return the tokens of each text, between those with which the tokenizer marks its beginning and end."""
        found = self._tokenizer(list(texts), verbose=False)["input_ids"]
        long = [row for row, tokens in enumerate(found) if len(tokens) > length]
        if long:
            texts_cut = self._tokenizer([texts[row] for row in long], truncation=True, max_length=length, verbose=False)
            for row, tokens in zip(long, texts_cut["input_ids"], strict=True):
                found[row] = tokens
            self._tokenizer("", verbose=False)  # the length of the last call would be saved with the tokenizer
        return [self._not_empty(np.array(tokens, dtype=np.int32)) for tokens in found], len(long)

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, which AutoTokenizer reads."""
        self._tokenizer.save_pretrained(folder)


def open_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer of a name: `bytes`, or a folder or Hub id of transformers. Raises DataError."""
    return Bytes() if name == BYTES else Pretrained(name)
