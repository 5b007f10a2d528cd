"""Which clients of a part of a cohort take which local step together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

_NUMBERS = 8

StepSizes = tuple[int, ...]
"""How many examples each of a client's next steps takes, in order."""


@dataclass(frozen=True)
class Step:
    """A local step of the clients `start` to `stop` - 1 of a sorted part of a cohort."""

    start: int
    stop: int
    size: int  #: how many examples each of them takes


def plan_steps(sizes: Sequence[StepSizes], full: int) -> tuple[Step, ...]:
    """Return the steps for clients with steps of these sizes, sorted as `processing_order` has them.

    Every client takes its steps in order; neighbours whose next steps have one size take them together. While any
    client has a step of `full` examples next, such steps are taken, so that clients wait for each other before others.
    """
    done, steps = [0] * len(sizes), list[Step]()
    while any(after < len(own) for after, own in zip(done, sizes, strict=True)):
        following = [own[after] if after < len(own) else 0 for after, own in zip(done, sizes, strict=True)]
        only = (full,) if full in following else set(following) - {0}
        start = 0
        for size, run in groupby(following):
            stop = start + len(list(run))
            if size in only:
                steps.append(Step(start, stop, size))
                done[start:stop] = [after + 1 for after in done[start:stop]]
            start = stop
    return tuple(steps)


def processing_order(sizes: Sequence[StepSizes], full: int) -> tuple[int, ...]:
    """Return the slots, those with the most steps of `full` examples first, and last steps of one size side by side."""

    def place(slot: int) -> tuple[int, int, int]:
        return -sizes[slot].count(full), _last(sizes[slot], full), slot

    return tuple(sorted(range(len(sizes)), key=place))


def _last(sizes: StepSizes, full: int) -> int:
    """Return the size of a client's last step where that is not full, else 0."""
    return sizes[-1] if sizes and sizes[-1] != full else 0


def padded(step: Step, clients: int, slots: int) -> int:
    """Return how far a step of the first clients may reach, so that there are few numbers of clients in a round.

    Compiling and recording take long for every number. There are at most about eight.
    """
    multiple = -(-slots // _NUMBERS)
    return min(clients, -(-step.stop // multiple) * multiple)
