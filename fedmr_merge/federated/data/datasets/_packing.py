"""From texts of any number of tokens to sequences of one length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmr_merge.federated.data.tokenizers import Tokenizer
from fedmr_merge.federated.data.tokens import IGNORED

Ids = NDArray[np.int64]


def cut(
    texts: Sequence[NDArray[np.integer] | Sequence[int]], length: int, padding: int
) -> tuple[Ids, NDArray[np.bool_]]:
    """Return the first tokens of every text, padded to one length, and where they are: both [texts, length]."""
    ids = np.full((len(texts), length), padding, dtype=np.int64)
    mask = np.zeros((len(texts), length), dtype=np.bool_)
    for row, tokens in enumerate(texts):
        kept = tokens[:length]
        ids[row, : len(kept)] = kept
        mask[row, : len(kept)] = True
    return ids, mask


def packed(
    texts: Sequence[NDArray[np.integer] | Sequence[int]], clients: Ids, length: int, tokenizer: Tokenizer, *, join: bool
) -> tuple[Ids, Ids, Ids]:
    """Return sequences, the next token of each of their places, and whose they are.

    Every text is followed by the token for its end. Joined, the texts of a client follow each other, in their order,
    and are cut into sequences, each of which begins with the last target of the one before; only the last is padded.
    Otherwise every text is one sequence, and what does not fit is left out.

    Returns:
        int64 [sequences, length], [sequences, length] with IGNORED at padding, and [sequences].
    """
    ids, targets, owners = [], [], []
    for client in np.unique(clients).tolist():
        own = [np.append(texts[row], tokenizer.end) for row in np.flatnonzero(clients == client).tolist()]
        for stream in [np.concatenate(own)] if join else [text[: length + 1] for text in own]:
            # Of n tokens the first n - 1 have a next one.
            count = -(-(len(stream) - 1) // length)
            whole = np.full(count * length + 1, tokenizer.padding, dtype=np.int64)
            whole[: len(stream)] = stream
            following = whole[1:].copy()
            following[len(stream) - 1 :] = IGNORED
            given = whole[:-1].copy()
            given[len(stream) - 1 :] = tokenizer.padding
            ids.append(given.reshape(count, length))
            targets.append(following.reshape(count, length))
            owners.append(np.full(count, client))
    return np.concatenate(ids), np.concatenate(targets), np.concatenate(owners)
