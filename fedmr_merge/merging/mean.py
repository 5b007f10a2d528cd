"""The weighted mean of the models' numbers: Σₖ wₖ xₖ / Σₖ wₖ.

The numbers are added up in the order of the slots and divided once, so that the result is the same bit for bit however
a tensor is cut into pieces. A model of weight 0 is not read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedmr_merge.merging.number_formats import Array

#: Called as `read(k, out)`: writes the numbers of slot k into `out`.
Read = Callable[[int, Array], None]


def weighted_mean(read: Read, weights: Array, total: Array, term: Array) -> None:
    """Write the mean into `total`; `term`, of the same shape and dtype, is overwritten.

    The sum can overflow where the mean does not: see `mean_of_large_numbers`.
    """
    number = total.dtype.type
    first, *others = np.flatnonzero(weights).tolist()
    read(first, total)
    if weights[first] != 1:
        np.multiply(total, number(weights[first]), out=total)
    for slot in others:
        read(slot, term)
        if weights[slot] != 1:
            np.multiply(term, number(weights[slot]), out=term)
        np.add(total, term, out=total)
    np.divide(total, number(weights.sum()), out=total)


def mean_of_large_numbers(read: Read, weights: Array, total: Array) -> None:
    """Replace what is not finite in `total` by the mean, where that is finite.

    The numbers are added up in float64 after they were made smaller by a power of two, which loses nothing that counts.
    """
    wide_type = np.complex128 if np.iscomplexobj(total) else np.float64
    scale = 2.0 ** -len(weights).bit_length()
    bound = scale * float(np.finfo(total.dtype).max)
    wide, term = np.zeros(total.size, wide_type), np.empty(total.size, wide_type)
    for slot in np.flatnonzero(weights).tolist():
        read(slot, term)
        term *= scale * weights[slot]
        wide += term
    wide /= weights.sum()
    overflown = np.isfinite(wide) & ~np.isfinite(total)
    parts = wide.view(np.float64)
    np.clip(parts, -bound, bound, out=parts)  # no mean lies beyond, but what it is rounded to could
    parts /= scale
    total[overflown] = wide[overflown]
