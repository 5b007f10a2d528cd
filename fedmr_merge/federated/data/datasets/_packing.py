"""From texts of any number of tokens to sequences of one length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmr_merge.federated.data.tokenizers import Tokenizer
from fedmr_merge.federated.data.tokens import IGNORED

Ids = NDArray[np.int64]


def cut(texts: Sequence[Sequence[int]], length: int, padding: int) -> tuple[Ids, NDArray[np.bool_]]:
    """Return the first tokens of every text, padded to one length, and where they are: both [texts, length]."""
    ids = np.full((len(texts), length), padding, dtype=np.int64)
    mask = np.zeros((len(texts), length), dtype=np.bool_)
    for row, tokens in enumerate(texts):
        kept = tokens[:length]
        ids[row, : len(kept)] = kept
        mask[row, : len(kept)] = True
    return ids, mask


def packed(
    texts: Sequence[Sequence[int]], clients: Ids, length: int, tokenizer: Tokenizer, *, join: bool
) -> tuple[Ids, Ids, Ids]:
    """Return sequences, the next token of each of their places, and whose they are.

    Every text is followed by the token for its end. Joined, the texts of a client follow each other, in their order,
    and are cut into sequences, each of which begins with the last target of the one before; only the last is padded.
    Otherwise every text is one sequence, and what does not fit is left out.

    Returns:
        int64 [sequences, length], [sequences, length] with IGNORED at padding, and [sequences].
    """
    streams: list[tuple[int, list[int]]] = []
    for client in np.unique(clients).tolist():
        own = [[*texts[row], tokenizer.end] for row in np.flatnonzero(clients == client).tolist()]
        streams += [(client, [token for text in own for token in text])] if join else [(client, text) for text in own]
    ids, targets, owners = [], [], []
    for client, tokens in streams:
        # A sequence needs one token more than its length: the target of its last place.
        starts = range(0, len(tokens) - 1, length) if join else range(min(1, len(tokens) - 1))
        for start in starts:
            part = tokens[start : start + length + 1]
            missing = length + 1 - len(part)
            ids.append(part[:-1] + [tokenizer.padding] * missing)
            targets.append(part[1:] + [IGNORED] * missing)
            owners.append(client)
    shape = (len(ids), length)
    return (
        np.array(ids, dtype=np.int64).reshape(shape),
        np.array(targets, dtype=np.int64).reshape(shape),
        np.array(owners, dtype=np.int64),
    )
