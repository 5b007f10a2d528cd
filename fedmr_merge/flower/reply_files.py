"""Files that hold what came back from clients, so that the server's memory need not hold K models at once.

A reply's arrays are written to a file as soon as they are checked, and are then mapped from it: the system reads a page
when it is looked at, and takes it back when memory is needed for something else. The file has no name, so that nothing
of it is left when the process ends, however that happens.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmr_merge.checkpoint.writer import write_all
from fedmr_merge.flower.arrays import Form

if TYPE_CHECKING:
    from flwr.app import Array

_ALIGNMENT = 64  # bytes: a multiple of the size of every number


class ReplyFile:
    """A file with room for the models of a round. It is there for as long as any of their arrays is.

    Args:
        folder: Where the file is written; None: the system's folder for temporary files.
        slots: The number of models.
        forms: The dtype and shape of each array of a model, by its name.
    """

    def __init__(self, folder: Path | None, slots: int, forms: Mapping[str, Form]) -> None:
        self._offsets, self._slot_bytes = dict[str, int](), 0
        for name, form in forms.items():
            self._offsets[name] = self._slot_bytes
            self._slot_bytes += -(-form.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._map: Any = None
        if slots * self._slot_bytes:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed with this object
            self._file.truncate(slots * self._slot_bytes)
            self._map = mmap.mmap(self._file.fileno(), slots * self._slot_bytes, access=mmap.ACCESS_READ)

    def keep(self, slot: int, model: Mapping[str, Array]) -> None:
        """Write the arrays of a slot's model to the file; from then on each has its bytes there, not in memory."""
        mapped = memoryview(self._map or b"")
        for name, array in model.items():
            size, start = len(array.data), slot * self._slot_bytes + self._offsets[name]
            if size:
                write_all(self._file.fileno(), array.data, start)
                array.data = mapped[start : start + size]

    def release_pages(self) -> None:
        """Let the system have back the memory of what was looked at; what is looked at again is read again."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
