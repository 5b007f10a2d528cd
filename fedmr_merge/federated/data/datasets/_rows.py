"""Rows of a table or of a text file, column by column: from CSV, JSON lines, parquet or plain text, or from the Hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedmr_merge.errors import DataError, listed, shown
from fedmr_merge.federated.data.datasets._table import class_names, read_hub, read_parquet

if TYPE_CHECKING:
    import pyarrow as pa

_FORMATS = (".csv", ".jsonl", ".parquet", ".txt")
_LONGEST_FIELD = 1 << 30  # characters, of a CSV file
TEXT = "text"  #: the column of a plain text, whose rows are its paragraphs

Column = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """Columns of equal length, and where they come from."""

    source: str
    columns: Mapping[str, Column]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: of the classes of a column, where it says so

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str) -> Column:
        """Return a column. Raises DataError when there is none of this name, or when an entry is empty."""
        if name not in self.columns:
            known = listed(self.columns, ", ", 10) or "none"
            raise DataError(
                f"{self.source}: there is no column {shown(name)!r}, there are {known}",
                hint="name its columns in `data`",
                column=name,
            )
        found = self.columns[name]
        empty = [row for row, value in enumerate(found) if _is_empty(value)]
        if empty:
            reason = f"has {len(empty):,} empty entries, the first in row {empty[0] + 1}"
            raise DataError(f"{self.source}: column {shown(name)!r} {reason}", column=name)
        return found

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return a column as numbers. Raises DataError when an entry is not a finite one."""
        found = self.column(name)
        try:
            numbers = found.astype(np.float64)
        except (TypeError, ValueError):
            numbers = None
        if numbers is not None and np.isfinite(numbers).all():
            return numbers
        row = next(row for row, value in enumerate(found) if not _is_number(value))
        raise DataError(
            f"{self.source}: column {shown(name)!r}, row {row + 1}: {shown(str(found[row]))!r} is not a number",
            hint="name the columns to read in data.features",
            column=name,
        )

    def of(self, chosen: NDArray[np.bool_]) -> Rows:
        """Return some of the rows."""
        return Rows(self.source, {name: column[chosen] for name, column in self.columns.items()}, self.names)


def read_rows(path: Path, split: str) -> Rows:
    """Read a split in all its columns: a file, or the files SPLIT.csv, SPLIT-….jsonl, SPLIT/….parquet, … of a folder.

    Raises DataError when there are none, when they have different columns, or when one cannot be read.
    """
    parts = [_read(file) for file in _files(path, split)]
    first = parts[0]
    for part in parts[1:]:
        if part.columns.keys() != first.columns.keys():
            raise DataError(f"{part.source}: has other columns than {first.source}", path=part.source)
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in first.columns}
    return Rows(str(path) if len(parts) > 1 else first.source, columns, first.names)


def read_hub_rows(repo: str, config: str | None, split: str, columns: Sequence[str]) -> Rows:
    """Read these columns of a split of a data set of the Hub. Raises DataError."""
    return _of_table(read_hub(repo, config, split, columns), repo)


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        if path.suffix not in _FORMATS:
            raise DataError(f"{path}: is not one of {', '.join(_FORMATS)}", path=path)
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder", hint="set data.path", path=path)
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix in _FORMATS
        and (file.stem == split or file.name.startswith(f"{split}-") or file.parent.name == split)
    )
    if not found:
        raise DataError(
            f"{path}: there is no file of the split {shown(split)!r}",
            hint=f"such as {split}.csv, {split}.jsonl, {split}.parquet or {split}.txt",
            path=path,
        )
    kinds = sorted({file.suffix for file in found})
    if len(kinds) > 1:
        raise DataError(
            f"{path}: the split {shown(split)!r} is there as {' and as '.join(kinds)}",
            hint="keep one of them",
            path=path,
        )
    return found


def _read(file: Path) -> Rows:
    if file.suffix == ".parquet":
        return _of_table(read_parquet([file], file), str(file))
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            if file.suffix == ".csv":
                return _of_csv(stream, file)
            if file.suffix == ".jsonl":
                return _of_jsonl(stream, file)
            paragraphs = [part.strip("\r\n") for part in stream.read().replace("\r\n", "\n").split("\n\n")]
            return Rows(str(file), {TEXT: _objects([part for part in paragraphs if part.strip()])})
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}", path=file) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}", path=file) from error


def _of_csv(stream: Iterator[str], file: Path) -> Rows:
    with _long_fields():
        reader = csv.reader(stream, strict=True)
        try:
            head = next(reader, [])
            if len(set(head)) != len(head) or not head:
                raise DataError(f"{file}: its first line must name its columns, each once", path=file)
            rows = []
            for row in reader:
                if len(row) != len(head):
                    reason = f"has {len(row)} entries, and the first line names {len(head)} columns"
                    raise DataError(f"{file}, line {reader.line_num}: {reason}", path=file)
                rows.append(row)
        except csv.Error as error:
            raise DataError(f"{file}, line {reader.line_num}: not CSV: {error}", path=file) from error
    columns = zip(*rows, strict=True) if rows else ([] for _ in head)
    return Rows(str(file), {name: _objects(column) for name, column in zip(head, columns, strict=True)})


def _of_jsonl(stream: Iterator[str], file: Path) -> Rows:
    columns: dict[str, list[Any]] = {}
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {number}: not JSON: {error}", path=file) from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: must be a JSON object", path=file)
        if not columns:
            columns = {key: [] for key in row}
        if row.keys() != columns.keys():
            raise DataError(f"{file}, line {number}: has other keys than the lines before", path=file)
        for key, value in row.items():
            columns[key].append(value)
    return Rows(str(file), {name: _objects(column) for name, column in columns.items()})


def _of_table(table: pa.Table, source: str) -> Rows:
    columns, names = {}, {}
    for name in table.column_names:
        column = table.column(name)
        # Numbers without gaps need no Python object each.
        columns[name] = column.to_numpy() if not column.null_count else _objects(column.to_pylist())
        found = class_names(table, name)
        if found is not None:
            names[name] = found
    return Rows(source, columns, names)


def _objects(values: Sequence[Any]) -> Column:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _is_number(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False
