"""The mean of K models, piece by piece: which bytes to read, how to add them up, within how much memory."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from fedmr_merge.checkpoint.copying import OpenFiles, SourceWatch
from fedmr_merge.checkpoint.header_json import DTYPE_BITS
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.errors import CheckpointError
from fedmr_merge.recombination.layout import OutputFile
from fedmr_merge.recombination.mean_options import KEPT, MeanOptions, NotFinite, out_dtype
from fedmr_merge.recombination.number_formats import Array, accumulator, decode, encode

Entries = Sequence[Mapping[str, TensorEntry]]

_JOB_PIECES = 64


@dataclass(frozen=True)
class _Piece:
    name: str
    sources: tuple[TensorEntry, ...]
    first: int  #: element
    count: int
    dtype: str
    out_dtype: str
    position: int  #: byte in the output file


def for_each_piece(
    file: OutputFile,
    entries: Entries,
    options: MeanOptions,
    watch: SourceWatch,
    sink: Callable[[int, Array], None],
) -> list[NotFinite]:
    """Take the mean of one file's tensors piece by piece; `sink(position in the output file, bytes)` gets every piece
    once, in any order.

    `entries[slot][tensor]` says where the slot's numbers are.
    """
    threads, elements = options.plan_work()
    slots = len(entries)
    weights = np.asarray(options.weights or [1.0] * slots, np.float64)
    weights = np.ldexp(weights, -np.frexp(weights.max())[1])  # exact, and none is too large or too small for float32
    local = threading.local()
    not_finite: Counter[tuple[str, int]] = Counter()
    lock = threading.Lock()

    def work(job: Sequence[_Piece]) -> None:
        if not hasattr(local, "worker"):
            local.worker = _Worker(weights, options.double, watch)
            with lock:
                workers.append(local.worker)
        for piece in job:
            raw, bad = local.worker.mean(piece)
            sink(piece.position, raw)
            if bad:
                with lock:
                    not_finite.update({(piece.name, slot): count for slot, count in bad.items()})

    workers: list[_Worker] = []
    try:
        with ThreadPoolExecutor(threads) as pool:
            _run_bounded(pool, work, _jobs(_pieces(file, entries, elements, options), elements), 4 * threads)
    finally:
        for worker in workers:
            worker.files.close()
    return [NotFinite(name, slot, count) for (name, slot), count in sorted(not_finite.items())]


def _pieces(file: OutputFile, entries: Entries, elements: int, options: MeanOptions) -> Iterator[_Piece]:
    position = file.header.data_start
    for name in file.tensors:
        sources = tuple(slot[name] for slot in entries)
        entry = sources[0]
        written = out_dtype(entry, options)
        for first in range(0, entry.parameters, elements):
            count = min(elements, entry.parameters - first)
            yield _Piece(name, sources, first, count, entry.dtype, written, position)
            position += count * DTYPE_BITS[written] // 8


def _jobs(pieces: Iterator[_Piece], elements: int) -> Iterator[list[_Piece]]:
    """Yield small pieces together: to hand one to a thread costs more than its mean."""
    job: list[_Piece] = []
    size = 0
    for piece in pieces:
        if job and (size + piece.count > elements or len(job) == _JOB_PIECES):
            yield job
            job, size = [], 0
        job.append(piece)
        size += piece.count
    if job:
        yield job


def _run_bounded(
    pool: ThreadPoolExecutor, work: Callable[[list[_Piece]], None], jobs: Iterator[list[_Piece]], limit: int
) -> None:
    """Run all the work with no more than `limit` jobs waiting: a model can have millions."""
    pending: set[Future[None]] = set()
    try:
        for job in jobs:
            pending.add(pool.submit(work, job))
            if len(pending) >= limit:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        for future in pending:
            future.result()
    except BaseException:
        for future in pending:
            future.cancel()
        raise


class _Worker:
    """One thread's buffers and open files."""

    def __init__(self, weights: Array, double: bool, watch: SourceWatch) -> None:
        self.weights = weights
        self.equal = bool((weights == weights[0]).all())
        self.double = double
        self.files = OpenFiles(watch)

    def read(self, entry: TensorEntry, piece: _Piece) -> Array:
        size = DTYPE_BITS[entry.dtype] // 8
        raw = os.pread(self.files.descriptor(entry.file), piece.count * size, entry.start + piece.first * size)
        if len(raw) != piece.count * size:
            raise CheckpointError(entry.file, f"truncated while it was read, in tensor {piece.name!r}")
        return np.frombuffer(raw, np.uint8)

    def mean(self, piece: _Piece) -> tuple[Array, dict[int, int]]:
        """Return the bytes of the mean of one piece, and slot -> how many of its numbers are not finite."""
        if piece.dtype in KEPT:
            return self.read(piece.sources[0], piece), {}
        kind = accumulator(piece.dtype, self.double)
        total, numbers = np.empty(piece.count, kind), np.empty(piece.count, kind)
        with np.errstate(over="ignore", invalid="ignore"):
            for slot, source in enumerate(piece.sources):
                target = numbers if slot else total
                decode(self.read(source, piece), piece.dtype, target)
                if not self.equal:
                    target *= kind.type(self.weights[slot])
                if slot:
                    total += numbers
            total /= kind.type(len(piece.sources) if self.equal else self.weights.sum())
        bad = {} if np.isfinite(total).all() else self._not_finite(piece, numbers)
        return encode(total, piece.out_dtype), bad

    def _not_finite(self, piece: _Piece, numbers: Array) -> dict[int, int]:
        found = {}
        for slot, source in enumerate(piece.sources):
            decode(self.read(source, piece), piece.dtype, numbers)
            count = piece.count - int(np.isfinite(numbers).sum())
            if count:
                found[slot] = count
        return found
