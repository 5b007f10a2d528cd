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
from fedmr_merge.checkpoint.output import OutputFile
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.errors import CheckpointError
from fedmr_merge.merging.number_formats import LARGEST, Array, accumulator, decode, encode
from fedmr_merge.merging.options import KEPT, MeanOptions, NotFinite, out_dtype

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
    # Exact, and none is too large or too small for float32.
    weights = np.ldexp(weights, -np.frexp(weights.max())[1]) if weights.min() < weights.max() else np.ones(slots)
    local = threading.local()
    not_finite: Counter[tuple[str, int | None]] = Counter()
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
    found = [NotFinite(name, slot, count) for (name, slot), count in not_finite.items()]
    return sorted(found, key=lambda item: (item.tensor, slots if item.slot is None else item.slot))


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
        self.equal = bool((weights == 1).all())
        self.first = int(np.flatnonzero(weights)[0])
        self.double = double
        self.files = OpenFiles(watch)

    def read(self, entry: TensorEntry, piece: _Piece) -> Array:
        size = DTYPE_BITS[entry.dtype] // 8
        raw = os.pread(self.files.descriptor(entry.file), piece.count * size, entry.start + piece.first * size)
        if len(raw) != piece.count * size:
            raise CheckpointError(entry.file, f"truncated while it was read, in tensor {piece.name!r}")
        return np.frombuffer(raw, np.uint8)

    def mean(self, piece: _Piece) -> tuple[Array, dict[int | None, int]]:
        """Return the bytes of the mean of one piece, and slot -> how many of its numbers are not finite; None -> how
        many of the mean's are not, though those that it is taken of are.
        """
        if piece.dtype in KEPT:
            return self.read(piece.sources[0], piece), {}
        kind = accumulator(piece.dtype, self.double)
        total, numbers = np.empty(piece.count, kind), np.empty(piece.count, kind)
        finite = True
        with np.errstate(over="ignore", invalid="ignore"):
            for slot, source in enumerate(piece.sources):
                target = total if slot == self.first else numbers
                decode(self.read(source, piece), piece.dtype, target)
                if not self.weights[slot]:
                    finite = finite and bool(np.isfinite(target).all())
                    continue
                if not self.equal:
                    target *= kind.type(self.weights[slot])
                if slot != self.first:
                    total += numbers
            total /= kind.type(self.weights.sum())
        bad: dict[int | None, int] = {}
        if not (finite and np.isfinite(total).all()):
            del numbers
            bad |= self._look_again(piece, total)
        raw = encode(total, piece.out_dtype)
        if piece.out_dtype != piece.dtype and (lost := _overflown(total, raw, piece.out_dtype)):
            bad[None] = lost
        return raw, bad

    def _look_again(self, piece: _Piece, total: Array) -> dict[int | None, int]:
        """Return slot -> how many of its numbers are not finite. Where only their sum is not, because it is too large,
        `total` gets the mean of the numbers made smaller by a power of two, which loses nothing that counts.
        """
        kind = accumulator(piece.dtype, double=True)
        scale = 2.0 ** -len(piece.sources).bit_length()
        bound = scale * float(np.finfo(total.dtype).max)
        wide, numbers = np.zeros(piece.count, kind), np.empty(piece.count, kind)
        found: dict[int | None, int] = {}
        with np.errstate(over="ignore", invalid="ignore"):
            for slot, source in enumerate(piece.sources):
                decode(self.read(source, piece), piece.dtype, numbers)
                count = piece.count - int(np.isfinite(numbers).sum())
                if count:
                    found[slot] = count
                if self.weights[slot]:
                    numbers *= scale * self.weights[slot]
                    wide += numbers
            wide /= self.weights.sum()
            overflown = np.isfinite(wide) & ~np.isfinite(total)
            parts = wide.view(np.float64)
            np.clip(parts, -bound, bound, out=parts)  # no mean lies beyond, but what it is rounded to could
            parts /= scale
            total[overflown] = wide[overflown]
        return found


def _overflown(numbers: Array, raw: Array, dtype: str) -> int:
    """Return how many of these numbers are finite, and are not in the dtype that they were written in."""
    if DTYPE_BITS[dtype] // 8 >= numbers.itemsize:
        return 0
    if dtype in LARGEST:  # what is larger becomes the largest number
        return int(np.count_nonzero(np.isfinite(numbers) & (np.abs(numbers) > LARGEST[dtype])))
    written = np.empty(numbers.size, accumulator(dtype, double=False))
    decode(raw, dtype, written)
    return int(np.count_nonzero(np.isfinite(numbers) & ~np.isfinite(written)))
