"""Tables of where tensors are on disk, compact enough for K models of 100,000 tensors side by side.

A table has a column for each fact instead of an object for each tensor, and tables with the same names in the same
order share their index. A `TensorEntry` is created when it is looked up.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary


class Signature(NamedTuple):
    """What a tensor is, wherever it is."""

    dtype: str  #: as safetensors writes it: F32, BF16, I64 …
    shape: tuple[int, ...]


class TensorEntry(NamedTuple):
    """One tensor on disk: its type and where its bytes are."""

    dtype: str  #: as safetensors writes it: F32, BF16, I64 …
    shape: tuple[int, ...]
    file: Path
    start: int  #: first byte, counted from the start of the file
    end: int  #: one past the last byte

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def parameters(self) -> int:
        return prod(self.shape)

    @property
    def signature(self) -> str:
        """Dtype and shape, as people read them: `F32 [64, 3, 7, 7]`."""
        return f"{self.dtype} {list(self.shape)}"


class Positions(dict[str, int]):
    """The index of a table: name → position."""

    __slots__ = ("__weakref__",)


_POSITIONS: WeakValueDictionary[tuple[str, ...], Positions] = WeakValueDictionary()


def positions(names: Iterable[str]) -> Positions:
    """Return the positions of names: one shared object for the same names, as long as it is in use."""
    key = tuple(names)
    found = _POSITIONS.get(key)
    if found is None:
        found = _POSITIONS[key] = Positions(zip(key, range(len(key)), strict=True))
    return found


class TensorTable(Mapping[str, TensorEntry]):
    """The tensors of one file, in the order of their bytes, without gap or overlap."""

    __slots__ = ("_bounds", "_file", "_positions", "_signatures")

    def __init__(self, names: Iterable[str], signatures: Sequence[Signature], bounds: array[int], file: Path) -> None:
        """`bounds` holds the first byte of every tensor and the end of the last."""
        self._positions = positions(names)
        self._signatures = signatures
        self._bounds = bounds
        self._file = file

    def __getitem__(self, name: str) -> TensorEntry:
        return self.at(self._positions[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._signatures)

    def __contains__(self, name: object) -> bool:
        return name in self._positions

    def at(self, position: int) -> TensorEntry:
        """Return the tensor at a position of the table."""
        return TensorEntry(*self._signatures[position], self._file, self._bounds[position], self._bounds[position + 1])

    def in_file(self, file: Path) -> TensorTable:
        """Return the same tensors at the same places of another file."""
        return TensorTable(self._positions, self._signatures, self._bounds, file)


class JoinedTables(Mapping[str, TensorEntry]):
    """The tensors of several files, as one table after the other."""

    __slots__ = ("_firsts", "_positions", "_tables")

    def __init__(self, names: Iterable[str], tables: Sequence[TensorTable]) -> None:
        """`names` are those of all tensors, in the order of the tables."""
        self._positions = positions(names)
        self._tables = tables
        self._firsts = [0, *accumulate(map(len, tables))]

    def __getitem__(self, name: str) -> TensorEntry:
        position = self._positions[name]
        table = bisect_right(self._firsts, position) - 1
        return self._tables[table].at(position - self._firsts[table])

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __contains__(self, name: object) -> bool:
        return name in self._positions
