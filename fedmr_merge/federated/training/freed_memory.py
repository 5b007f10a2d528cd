"""Keep freed memory for the next local step, or return it at once."""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 << 20
_LARGEST_TRIM_THRESHOLD = (1 << 31) - 1
_SMALLEST_RETURNED = 1 << 20


@cache
def keep_freed_memory() -> None:
    """Ask the C library, if it is glibc, not to return freed memory to the system; for the whole process.

    A local step allocates the same tensors as the one before. Handed back and asked for again, their pages are cleared
    by the system each time, which can take a third of the time of an evaluation. No more memory is used at any
    moment than at the most demanding one.
    """
    _set(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    _set(_M_TRIM_THRESHOLD, _LARGEST_TRIM_THRESHOLD)
    _set(_M_ARENA_MAX, 1)  # those of threads hand memory back whatever the thresholds say


def return_freed_memory() -> None:
    """Ask the C library, if it is glibc, to return tensors to the system as soon as they are freed.

    By default it keeps what is smaller than the largest memory that was freed before, up to 32 MB. A server that passes
    models on allocates such pieces in many threads, and what is kept comes to several models.
    """
    _set(_M_MMAP_THRESHOLD, _SMALLEST_RETURNED)


def _set(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(option, value)
