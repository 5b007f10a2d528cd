"""The layout of the inputs: every model is written as its donor is, file by file, or sharded anew."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.checkpoint.copying import SourceWatch, assemble, assemble_hashed
from fedmr_merge.checkpoint.hashing import Digests
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.output import OutputFile, OutputModel, lay_out
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.checkpoint.writer import Progress, refuse_without_space
from fedmr_merge.cores import usable_cores
from fedmr_merge.recombination.layouts.base import Forecast, Layout, Written

if TYPE_CHECKING:
    from fedmr_merge.recombination.prepare import PreparedRecombination


@dataclass(frozen=True)
class FilesLayout(Layout):
    """Write every model as its donor is: same files, same headers, same order of bytes.

    Args:
        max_shard_bytes: the largest shard, where the models are to be sharded anew; each keeps its own files if None.
    """

    max_shard_bytes: int | None = None

    def plan(self, donor: Checkpoint, sources: Mapping[str, TensorEntry], sidecars_from: Checkpoint) -> OutputModel:
        """Return the model to write in a slot."""
        return lay_out(donor, sources, sidecars_from, self.max_shard_bytes)

    def check(self, work: PreparedRecombination) -> None:
        """Raise OutputError when the disk does not have the room."""
        refuse_without_space(work.out, work.bytes_to_write)

    def forecast(self, work: PreparedRecombination) -> Forecast:
        """Return the bytes of everything that will be written."""
        return Forecast(work.bytes_to_write, str(work.out))

    def write(
        self, work: PreparedRecombination, staging: Path, watch: SourceWatch, progress: Progress | None
    ) -> Written:
        """Copy every tensor to its place, and hash it on the way where that was asked for."""
        jobs: list[tuple[int, OutputFile, Path]] = []
        for slot, model in work.models.items():
            path = model.path(staging, work.name(slot))
            model.prepare(path)
            jobs += [(slot, file, model.file_path(path, file)) for file in model.files]
        digests = {slot: Digests(work.parents[slot].tensors) for slot in work.models} if work.hashes else {}
        stopped = threading.Event()

        def report(copied: int) -> None:
            if stopped.is_set():
                raise CancelledError
            if progress:
                progress(copied)

        def write(job: tuple[int, OutputFile, Path]) -> None:
            slot, file, path = job
            if work.hashes:
                hashes = assemble_hashed(path, file.header.raw, file.segments, watch, report)
                digests[slot].fill(file.tensors, hashes)
            else:
                assemble(path, file.header.raw, file.segments, watch, report)

        # Two cores copy twice as fast as one, and hashing does not hold the interpreter's lock.
        with ThreadPoolExecutor(min(len(jobs), usable_cores())) as pool:
            try:
                for done in as_completed([pool.submit(write, job) for job in jobs]):
                    done.result()
            finally:  # after an error or Ctrl-C nobody waits for files of many gigabytes that are removed anyway
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
        return Written(digests)
