"""Independent random streams from one seed.

Every random decision draws from a stream of its own, named by its purpose and its place (round, client, layer group
…), so that no decision shifts another: adding a client, a thread or a layer group changes nothing that was drawn for
the others.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def derive_seed(seed: int, purpose: str, *place: int | str) -> int:
    """Return a 63-bit seed that depends on every argument and on nothing else."""
    return next(random_words(seed, purpose, *place)) >> 1


def random_words(seed: int, purpose: str, *place: int | str) -> Iterator[int]:
    """Yield an endless stream of uniform 64-bit integers: SHA-256 over the arguments and a counter.

    Needs nothing but the standard library, so that a recombination plan is the same on every platform and version of
    every library.
    """
    # As Python's own numbers: NumPy spells its numbers in another way, so that they would give other words.
    parts = (str(part) if isinstance(part, str) else operator.index(part) for part in place)
    # repr() keeps 1 and "1" apart, and a part cannot run into the next.
    key = repr((int(operator.index(seed)), purpose, *parts)).encode()
    counter = 0
    while True:
        block = hashlib.sha256(key + counter.to_bytes(8, "little")).digest()
        for start in range(0, 32, 8):
            yield int.from_bytes(block[start : start + 8], "little")
        counter += 1


def permutation(length: int, words: Iterator[int]) -> tuple[int, ...]:
    """Draw a uniform permutation of `range(length)` (Fisher-Yates, without modulo bias)."""
    items = list(range(length))
    for last in range(length - 1, 0, -1):
        bound = last + 1
        # Words at or above the largest multiple of `bound` would favour small indices.
        limit = (1 << 64) - (1 << 64) % bound
        word = next(word for word in words if word < limit)
        other = word % bound
        items[last], items[other] = items[other], items[last]
    return tuple(items)


def generator(seed: int, purpose: str, *place: int | str) -> np.random.Generator:
    """Return the numpy generator of this purpose and place."""
    import numpy as np  # kept out of commands that copy bytes

    return np.random.Generator(np.random.PCG64(derive_seed(seed, purpose, *place)))
