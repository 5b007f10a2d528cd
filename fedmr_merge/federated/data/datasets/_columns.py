"""Any image classification set that is a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Lt

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.class_names import renumbered
from fedmr_merge.federated.data.datasets._hold_out import hold_out
from fedmr_merge.federated.data.datasets._images import ImageDataSet, Numbers, Part, numbered
from fedmr_merge.federated.data.datasets._table import begins_grey, class_names, decode, in_words, values
from fedmr_merge.federated.data.images import ImageData

if TYPE_CHECKING:
    import pyarrow as pa


_MOST_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class TableDataSet(ImageDataSet):
    """Base of the data sets whose columns are named in the recipe."""

    image_column: str = "image"  #: the images, as files in the table
    label_column: str = "label"  #: the classes: numbers, or strings
    client_column: str | None = None  #: whose example it is, for the partition `natural`
    train_split: str = "train"
    test_split: str | None = "test"  #: held out; `null` takes `test_share` of the training split instead
    test_share: Annotated[float, Gt(0), Lt(1)] | None = None  #: of each client, or else of each class
    size: Annotated[int, Ge(1)] | None = None  #: resize all images to squares so many pixels wide

    @property
    def packages(self) -> tuple[str, ...]:
        """What decodes the images."""
        return ("pillow",)

    def read(self, split: str, columns: list[str]) -> pa.Table:
        """Read columns of a split."""
        raise NotImplementedError

    def load(self) -> ImageData:
        """Return the data."""
        if (self.test_split is None) != (self.test_share is not None):
            raise DataError(f"{self.name}: give either test_split or test_share", hint="the other one is `null`")
        columns = [self.image_column, self.label_column]
        table = self.read(self.train_split, columns + ([self.client_column] if self.client_column else []))
        names = _names(table, self.label_column)
        notes = _notes(table, self.label_column, names)
        clients = numbered(values(table, self.client_column))[0] if self.client_column else None
        images = decode(table, self.image_column, size=self.size)
        if images.shape[1] == 3 and begins_grey(table, self.image_column):
            notes += ("the first image is grey and others have colour: all are read in colour",)
        are_numbers = _are_numbers(table, self.label_column)
        train = Part(images, _labels(table, self.label_column, names, are_numbers=are_numbers), clients)
        if self.test_share is not None:
            self.require_classes("training", train, names)
            groups = train.labels if clients is None else clients
            held_out = hold_out(groups, self.test_share, "held-out part", carry_remainders=clients is not None)
            return self.assemble(_rows(train, ~held_out), _rows(train, held_out), names, notes)
        table = self.read(str(self.test_split), columns)
        images = decode(table, self.image_column, size=self.size, colour=images.shape[1] == 3)
        labels = _labels(table, self.label_column, names, are_numbers=are_numbers)
        return self.assemble(train, Part(images, labels), names, notes)


def _rows(part: Part, chosen: np.ndarray) -> Part:
    return Part(part.images[chosen], part.labels[chosen], None if part.clients is None else part.clients[chosen])


def _names(table: pa.Table, column: str) -> tuple[str, ...]:
    """Return the names of the classes: the table's own, else the different labels of the training part."""
    named = class_names(table, column)
    if named is not None:
        return named
    found = np.unique(values(table, column))
    if len(found) > _MOST_CLASSES:
        raise DataError(
            f"{in_words(table, column)} has {len(found):,} different labels",
            hint="name another data.label_column",
            column=column,
        )
    return tuple(str(label) for label in found if not _is_missing(label))


def _is_missing(label: Any) -> bool:
    """Whether a label stands for none: Hub data sets write -1, which `assemble` refuses."""
    return isinstance(label, np.integer) and bool(label < 0)


def _are_numbers(table: pa.Table, column: str) -> bool:
    """Whether the labels are numbers, which the table does not name."""
    return class_names(table, column) is None and values(table, column).dtype.kind in "iu"


def _notes(table: pa.Table, column: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return what was decided about the labels, where people could expect something else."""
    if not _are_numbers(table, column):
        return ()
    if names == tuple(str(label) for label in range(len(names))):
        return ()
    shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    return (f"the labels {shown} are not 0 to {len(names) - 1}: they are numbered anew, and keep their names",)


def _labels(table: pa.Table, column: str, names: tuple[str, ...], *, are_numbers: bool) -> Numbers:
    """Return the class of every example, by its number in the training part, whose labels may be numbers without names.

    Raises DataError for a label that is not one of the classes.
    """
    found, own = values(table, column), class_names(table, column)
    if found.dtype.kind in "iu" and own is not None and not are_numbers:
        return renumbered(found, own, names, in_words(table, column))
    different, numbers = np.unique(found, return_inverse=True)
    place = {name: label for label, name in enumerate(names)}
    place |= {str(label): int(label) for label in different if _is_missing(label)}
    unknown = [str(label) for label in different if str(label) not in place]
    if unknown:
        raise DataError(
            f"{in_words(table, column)} has the class {unknown[0][:60]!r}, which the training part does not have",
            hint="take the examples of that class out of the test part, or name another split",
            column=column,
        )
    return np.array([place[str(label)] for label in different], dtype=np.int64)[numbers]
