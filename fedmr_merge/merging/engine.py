"""The engine of merging: reads K models piece by piece, takes the mean of each piece, and hands it on to be written.

A method (`mean.py`) owns the formula. The engine owns which bytes are read, in how many threads, within how much
memory, in what precision, and what is reported of numbers that are not finite.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fedmr_merge.checkpoint.copying import OpenFiles, SourceWatch, read_exactly
from fedmr_merge.checkpoint.header_json import DTYPE_BITS
from fedmr_merge.checkpoint.output import OutputFile
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.merging.mean import mean_of_large_numbers, weighted_mean
from fedmr_merge.merging.number_formats import LARGEST, Array, Buffers, accumulator, decode, encode
from fedmr_merge.merging.options import KEPT, MeanOptions, MeanOutcome, NotFinite, out_dtype

Entries = Sequence[Mapping[str, TensorEntry]]


@dataclass(frozen=True, slots=True)
class _Piece:
    name: str
    sources: tuple[TensorEntry, ...]  #: one for each slot
    first: int  #: element of the tensor
    count: int  #: elements
    dtype: str
    out_dtype: str
    position: int  #: byte in the output file


def for_each_piece(
    file: OutputFile,
    entries: Entries,
    options: MeanOptions,
    watch: SourceWatch,
    sink: Callable[[int, Array], None],
) -> MeanOutcome:
    """Take the mean of one file's tensors piece by piece, and return what was met.

    `entries[slot][tensor]` says where the slot's numbers are. `sink(position in the output file, bytes)` gets every
    piece once, in any order and from several threads; the bytes are overwritten as soon as it returns.
    """
    threads, elements = options.plan_work()
    weights = _scaled(options.weights, len(entries))
    pieces = _pieces(file, entries, elements, options)
    not_finite: Counter[tuple[str, int | None]] = Counter()
    differing_integers: set[str] = set()
    lock = threading.Lock()
    is_stopped = False

    def next_piece() -> _Piece | None:
        with lock:
            return None if is_stopped else next(pieces, None)

    def work() -> None:
        nonlocal is_stopped
        try:
            with OpenFiles(watch) as files:
                worker = _Worker(weights, options.double, files)
                while (piece := next_piece()) is not None:
                    raw, bad = worker.mean(piece)
                    sink(piece.position, raw)
                    if bad:
                        with lock:
                            not_finite.update({(piece.name, slot): count for slot, count in bad.items()})
                with lock:
                    differing_integers.update(worker.differing_integers)
        finally:
            is_stopped = True  # there is nothing left, or another thread's work would be in vain

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(work) for _ in range(threads)]
        try:
            for future in futures:
                future.result()
        finally:
            is_stopped = True
    found = [NotFinite(name, slot, count) for (name, slot), count in not_finite.items()]
    found.sort(key=lambda item: (item.tensor, len(entries) if item.slot is None else item.slot))
    return MeanOutcome(tuple(found), tuple(name for name in file.tensors if name in differing_integers))


def _scaled(weights: Sequence[float] | None, slots: int) -> Array:
    """Return the weights, made at most 1 by a power of two: exact, and none is too large or too small for float32."""
    if weights is None or min(weights) == max(weights):
        return np.ones(slots)
    scaled: Array = np.ldexp(np.asarray(weights, np.float64), -np.frexp(max(weights))[1])
    return scaled


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


class _Worker:
    """One thread's buffers, which every piece is read into and calculated in: new memory costs more than the sum."""

    def __init__(self, weights: Array, double: bool, files: OpenFiles) -> None:
        self.weights, self.double, self.files = weights, double, files
        self.buffers = Buffers()
        self.differing_integers: set[str] = set()  #: by name; scalars are not among them

    def mean(self, piece: _Piece) -> tuple[Array, dict[int | None, int]]:
        """Return the bytes of the mean of one piece, and slot → how many of its numbers are not finite.

        Under None stands how many of the mean's numbers are not finite though those of the models are.
        """
        if piece.dtype in KEPT:
            return self._keep(piece), {}
        kind = accumulator(piece.dtype, self.double)
        total, term = (self.buffers.take(purpose, kind, piece.count) for purpose in ("total", "term"))

        def read(slot: int, out: Array) -> None:
            decode(self._bytes(piece, slot), piece.dtype, out)

        bad: dict[int | None, int] = {}
        with np.errstate(over="ignore", invalid="ignore"):
            weighted_mean(read, self.weights, total, term)
            is_finite = self._is_finite(total)
            for slot in np.flatnonzero(self.weights == 0).tolist():  # what adds nothing is reported as well
                read(slot, term)
                is_finite = is_finite and self._is_finite(term)
            if not is_finite:
                for slot in range(len(self.weights)):
                    read(slot, term)
                    if count := int(np.count_nonzero(~np.isfinite(term))):
                        bad[slot] = count
                mean_of_large_numbers(read, self.weights, total)
            raw = encode(total, piece.out_dtype, self.buffers)
            if piece.out_dtype != piece.dtype and (lost := _overflown(total, raw, piece.out_dtype)):
                bad[None] = lost
        return raw, bad

    def _keep(self, piece: _Piece) -> Array:
        """Return slot 0's bytes, after a look at whether those of the other models differ.

        A scalar that differs is a counter, such as `num_batches_tracked`, and of no interest.
        """
        kept = self._bytes(piece, 0)
        if piece.sources[0].parameters > 1 and piece.name not in self.differing_integers:
            others = [slot for slot in np.flatnonzero(self.weights).tolist() if slot]
            if not all(np.array_equal(self._bytes(piece, slot, "others' bytes"), kept) for slot in others):
                self.differing_integers.add(piece.name)
        return kept

    def _bytes(self, piece: _Piece, slot: int, purpose: str = "bytes") -> Array:
        source = piece.sources[slot]
        size = DTYPE_BITS[source.dtype] // 8
        raw = self.buffers.take(purpose, np.dtype(np.uint8), piece.count * size)
        descriptor = self.files.descriptor(source.file)
        read_exactly(source.file, descriptor, source.start + piece.first * size, raw.data)
        return raw

    def _is_finite(self, numbers: Array) -> bool:
        flags = self.buffers.take("flags", np.dtype(np.bool_), numbers.size)
        return bool(np.isfinite(numbers, out=flags).all())


def _overflown(numbers: Array, raw: Array, dtype: str) -> int:
    """Return how many of these numbers are finite but were not so in the dtype that they were written in."""
    if DTYPE_BITS[dtype] // 8 >= numbers.itemsize:
        return 0
    if dtype in LARGEST:  # what is larger becomes the largest number
        return int(np.count_nonzero(np.isfinite(numbers) & (np.abs(numbers) > LARGEST[dtype])))
    written = np.empty(numbers.size, accumulator(dtype, double=False))
    decode(raw, dtype, written)
    return int(np.count_nonzero(np.isfinite(numbers) & ~np.isfinite(written)))
