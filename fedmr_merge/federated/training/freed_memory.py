"""Keep freed memory for the next local step."""

from __future__ import annotations

import ctypes
from functools import cache

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 << 20
_LARGEST_TRIM_THRESHOLD = (1 << 31) - 1


@cache
def keep_freed_memory() -> None:
    """Ask the C library, if it is glibc, not to return freed memory to the system; for the whole process.

    A local step allocates the same tensors as the one before. Handed back and asked for again, their pages are cleared
    by the system each time, which can take a third of the time of an evaluation. No more memory is used at any
    moment than at the most demanding one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _LARGEST_TRIM_THRESHOLD)
    mallopt(_M_ARENA_MAX, 1)  # those of threads hand memory back whatever the thresholds say
