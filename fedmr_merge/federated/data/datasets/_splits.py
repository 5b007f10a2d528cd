"""The options of data sets of rows: where they are, which part is held out, and whose row is whose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray

from fedmr_merge.errors import DataError, shown
from fedmr_merge.federated.data.class_names import renumbered
from fedmr_merge.federated.data.datasets._hold_out import hold_out
from fedmr_merge.federated.data.datasets._images import numbered
from fedmr_merge.federated.data.datasets._rows import Rows, read_hub_rows, read_rows
from fedmr_merge.federated.data.datasets.base import DataSet
from fedmr_merge.paths import local_path
from fedmr_merge.seeds import generator

_MOST_CLASSES = 100_000


class Labels(NamedTuple):
    """Classes: their names, and the number of the class of every row of both parts."""

    names: tuple[str, ...]
    train: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RowsDataSet(DataSet):
    """Base of the data sets whose rows come from files, or from the Hub."""

    path: str | None = None
    """A file, or a folder with a file for each split, e.g. train.csv and test.csv; also .jsonl, .parquet and .txt."""
    repo: str | None = None  #: in place of path: a data set of the Hub, ORG/NAME
    config: str | None = None  #: the Hub's name of one of the data set's configurations
    client_column: str | None = None  #: whose example it is, for the partition `natural`
    train_split: str = "train"
    test_split: str | None = "test"  #: held out; `null` takes `test_share` of the training split instead
    test_share: Annotated[float, Gt(0), Lt(1)] | None = None  #: of each client, or else of each class, or else of all
    max_train_rows: Annotated[int, Ge(1)] | None = None  #: so many rows, drawn at random, the same ones for every seed
    max_test_rows: Annotated[int, Ge(1)] | None = None  #: the same of the test part

    @property
    def hub_id(self) -> str | None:
        """Return the name of the data set that the rows come from; None where they are files."""
        return self.repo

    def read(self, columns: list[str], groups: str | None) -> tuple[Rows, Rows]:
        """Return the rows of the training part and of the test part.

        Args:
            columns: The columns that are needed; files are read in all of theirs.
            groups: The column of classes, of each of which `test_share` is held out where no clients are named.
        """
        if (self.path is None) == (self.repo is None):
            raise DataError(f"{self.name}: give either path or repo", hint="path is a file or folder, repo a Hub id")
        if (self.test_split is None) != (self.test_share is not None):
            raise DataError(f"{self.name}: give either test_split or test_share", hint="the other one is `null`")
        train = self._read(self.train_split, columns + ([self.client_column] if self.client_column else []))
        if self.test_share is None:
            test = self._read(str(self.test_split), columns)
        else:
            column = self.client_column or groups
            found = numbered(train.column(column))[0] if column else np.zeros(len(train), dtype=np.int64)
            chosen = hold_out(found, self.test_share, "held-out part", carry_remainders=self.client_column is not None)
            train, test = train.of(~chosen), train.of(chosen)
        train, test = _at_most(train, self.max_train_rows, "train"), _at_most(test, self.max_test_rows, "test")
        for name, rows in (("training", train), ("test", test)):
            if not len(rows):
                raise DataError(f"{rows.source}: the {name} part has no rows", path=rows.source)
        return train, test

    def clients(self, train: Rows) -> NDArray[np.int64] | None:
        """Return whose row each of the training part is, counted from 0."""
        return numbered(train.column(self.client_column))[0] if self.client_column else None

    def _read(self, split: str, columns: list[str]) -> Rows:
        if self.repo is not None:
            return read_hub_rows(self.repo, self.config, split, columns)
        path = local_path(str(self.path))
        if path.is_file() and self.test_share is None:
            raise DataError(
                f"{path}: is one file, of which a part must be held out",
                hint="set data.test_share, e.g. to 0.1, and data.test_split to null",
                path=path,
            )
        return read_rows(path, split)


def _at_most(rows: Rows, most: int | None, part: str) -> Rows:
    """Return so many rows at most, in their order. Which ones does not depend on the seed of a run."""
    if most is None or most >= len(rows):
        return rows
    chosen = np.zeros(len(rows), dtype=np.bool_)
    chosen[generator(0, "rows that are read", part).permutation(len(rows))[:most]] = True
    return rows.of(chosen)


def read_labels(train: Rows, test: Rows, column: str) -> Labels:
    """Return the classes of a column: those that it names itself, else the different values of the training part.

    Numbers are sorted as such, also where they are written in a CSV file. Where both parts name their classes, those of
    one name are one class. Raises DataError for a label that the training part does not have.
    """
    names = train.names.get(column)
    if names is None:
        found = {str(value) for value in train.column(column)}
        if len(found) > _MOST_CLASSES:
            raise DataError(f"column {shown(column)!r} has {len(found):,} different labels", column=column)
        names = tuple(sorted(found, key=_as_people_sort))
        place = {name: label for label, name in enumerate(names)}
    else:
        place = {str(label): label for label in range(len(names))}
    parts = []
    for rows in (train, test):
        labels, own = rows.column(column), rows.names.get(column)
        if column in train.names and own is not None and labels.dtype.kind in "iu":
            labels = renumbered(labels, own, names, f"{rows.source}: column {shown(column)!r}")
        values = [str(value) for value in labels]
        unknown = next((value for value in values if value not in place), None)
        if unknown is not None:
            reason = f"has the class {shown(unknown)!r}, which the training part does not have"
            raise DataError(f"{rows.source}: column {shown(column)!r} {reason}", column=column)
        parts.append(np.array([place[value] for value in values], dtype=np.int64))
    return Labels(tuple(names), *parts)


def _as_people_sort(name: str) -> tuple[Any, ...]:
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)
