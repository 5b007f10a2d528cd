"""Which clients of a part of a cohort take which local step together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

_NUMBERS = 8

BatchSizes = tuple[int, ...]
"""How many examples each batch of a client's epoch holds, in order."""


@dataclass(frozen=True)
class Step:
    """A local step of the clients `start` to `stop` - 1 of a sorted part of a cohort."""

    start: int
    stop: int
    size: int  #: of each client's batch


def plan_steps(sizes: Sequence[BatchSizes], batch_size: int) -> tuple[Step, ...]:
    """Return the steps for clients with batches of these sizes, sorted as `processing_order` has them.

    Every client takes its batches in order; neighbours whose next batches have one size take them together. While any
    client has a full batch next, full ones are taken, so that clients wait for each other before their others.
    """
    done, steps = [0] * len(sizes), list[Step]()
    while any(after < len(batches) for after, batches in zip(done, sizes, strict=True)):
        following = [batches[after] if after < len(batches) else 0 for after, batches in zip(done, sizes, strict=True)]
        only = (batch_size,) if batch_size in following else set(following) - {0}
        start = 0
        for size, run in groupby(following):
            stop = start + len(list(run))
            if size in only:
                steps.append(Step(start, stop, size))
                done[start:stop] = [after + 1 for after in done[start:stop]]
            start = stop
    return tuple(steps)


def processing_order(sizes: Sequence[BatchSizes], batch_size: int) -> tuple[int, ...]:
    """Return the slots, those with the most full batches first, and last batches of one size side by side."""

    def place(slot: int) -> tuple[int, int, int]:
        return -sizes[slot].count(batch_size), _last(sizes[slot], batch_size), slot

    return tuple(sorted(range(len(sizes)), key=place))


def _last(sizes: BatchSizes, batch_size: int) -> int:
    """Return the size of a client's last batch where that is not full, else 0."""
    return sizes[-1] if sizes and sizes[-1] != batch_size else 0


def padded(step: Step, clients: int, slots: int) -> int:
    """Return how far a step of the first clients may reach, so that there are few numbers of clients in a round.

    Compiling and recording take long for every number. There are at most about eight.
    """
    multiple = -(-slots // _NUMBERS)
    return min(clients, -(-step.stop // multiple) * multiple)
