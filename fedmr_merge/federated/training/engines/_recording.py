"""A local step that is recorded once and then replayed: on a GPU as a CUDA graph, with one launch for all of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedmr_merge.errors import TrainingError, shown
from fedmr_merge.federated.training.engines._step import is_out_of_memory

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a function would do, without doing it; what it returns does that, on the same memory."""


class RecordedStep:
    """One step on memory that stays where it is: run as it is the first time, then recorded, then replayed.

    The first run is a step like any other: it compiles, and lets libraries set themselves up, which no recording may.
    """

    def __init__(self, record: Record) -> None:
        """Record it with this function."""
        self._record = record
        self._indices: Tensor | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, step: Callable[[Tensor], None], indices: Tensor) -> None:
        """Take the step with the examples of these indices, which always have one shape."""
        if self._indices is None:
            self._indices = indices.clone()
            step(self._indices)
            return
        own = self._indices.copy_(indices)
        if self._replay is None:
            self._replay = self._record(lambda: step(own))
        self._replay()


def cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Record a step as a CUDA graph. Raises TrainingError when it does what a graph cannot hold."""
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may use the GPU meanwhile, as the one does that copies checkpoints.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = shown((str(error).strip() or "no reason given").splitlines()[0])
        raise TrainingError(
            f"training.compile: a local step cannot be recorded as a CUDA graph: {reason}",
            hint="set training.compile to false",
        ) from error
    replay: Callable[[], None] = graph.replay
    return replay
