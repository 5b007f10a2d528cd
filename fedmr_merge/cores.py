"""How many processor cores this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return the number of cores that this process may run on.

    In a job of a cluster, or under `taskset`, these are fewer than the machine has. Where the system does not tell, as
    on macOS, all cores of the machine are counted.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
