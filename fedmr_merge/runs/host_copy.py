"""Copy a state from a GPU to the host while training continues.

All tensors of a state go into one buffer of page-locked memory, on a stream of their own, so that training waits for
none of the copies. Whoever reads the buffer waits for all of them at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.protocol import State

_ALIGNMENT = 64  # bytes: those of a CPU's cache line, and a multiple of every number's


@dataclass(frozen=True, eq=False)
class HostCopy:
    """A state that is being copied to the host."""

    source: State
    """Held until the copy is done: the memory of tensors that are freed is given to training, which overwrites it."""
    copied: State  #: on the CPU; holds the state's values once `wait` has returned
    done: torch.cuda.Event | None  #: None where nothing has to be waited for

    def wait(self) -> State:
        """Wait until everything has been copied; return the state on the CPU."""
        if self.done is not None:
            self.done.synchronize()
        return self.copied


class HostCopier:
    """Copies states to the host, one after the other, into a buffer that is kept."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._stream: torch.cuda.Stream | None = None

    def start(self, state: State) -> HostCopy:
        """Start to copy a state; the copy before must be done with, since it has the same buffer.

        A state on the CPU is not copied: its tensors are never changed.
        """
        device = next(iter(state.global_weights.values())).device
        if device.type != "cuda":
            return HostCopy(state, state, None)
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            copied = self.fill_buffer(state, page_locked=True)
            return HostCopy(state, copied, self._stream.record_event())

    def fill_buffer(self, state: State, *, page_locked: bool) -> State:
        """Start to copy a state's tensors into the buffer; return the state whose tensors are views of it.

        From a GPU a copy only runs beside what follows where the buffer is page-locked.
        """
        families = (state.cohort.tensors, state.global_weights, state.tensors)
        needed = sum(_room(tensor) for family in families for tensor in family.values())
        if len(self._buffer) < needed:
            self._buffer = torch.empty(needed, dtype=torch.uint8, pin_memory=page_locked)
        start, copies = 0, []
        for family in families:
            copied = {}
            for name, tensor in family.items():
                place = self._buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                copied[name] = place.copy_(tensor, non_blocking=True)
                start += _room(tensor)
            copies.append(copied)
        cohort, global_weights, others = copies
        return replace(state, cohort=Cohort(cohort), global_weights=global_weights, tensors=others)


def _room(tensor: Tensor) -> int:
    """Return the bytes that a tensor takes up in the buffer."""
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
