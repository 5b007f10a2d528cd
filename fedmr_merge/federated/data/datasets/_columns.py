"""Any image classification set that is a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Ge, Gt, Lt

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets._hold_out import hold_out
from fedmr_merge.federated.data.datasets._images import ImageDataSet, Numbers, Part, numbered
from fedmr_merge.federated.data.datasets._table import class_names, decode, values
from fedmr_merge.federated.data.images import ImageData

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class TableDataSet(ImageDataSet):
    """Base of the data sets whose columns are named in the recipe."""

    image_column: str = "image"  #: the images, as files in the table
    label_column: str = "label"  #: the classes: numbers from 0, or texts
    client_column: str | None = None  #: whose example it is, for the partition `natural`
    train_split: str = "train"
    test_split: str | None = "test"  #: held out; `null` takes `test_share` of the training split instead
    test_share: Annotated[float, Gt(0), Lt(1)] | None = None  #: of each client, or else of each class
    size: Annotated[int, Ge(1)] | None = None  #: resize all images to squares so many pixels wide

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
        clients = numbered(values(table, self.client_column))[0] if self.client_column else None
        images = decode(table, self.image_column, size=self.size)
        train = Part(images, _labels(table, self.label_column, names), clients)
        if self.test_share is not None:
            groups = train.labels if clients is None else clients
            held_out = hold_out(groups, self.test_share, "held-out part")
            return self.assemble(_rows(train, ~held_out), _rows(train, held_out), names)
        table = self.read(str(self.test_split), columns)
        images = decode(table, self.image_column, size=self.size, colour=images.shape[1] == 3)
        return self.assemble(train, Part(images, _labels(table, self.label_column, names)), names)


def _rows(part: Part, chosen: np.ndarray) -> Part:
    return Part(part.images[chosen], part.labels[chosen], None if part.clients is None else part.clients[chosen])


def _names(table: pa.Table, column: str) -> tuple[str, ...]:
    named = class_names(table, column)
    if named is not None:
        return named
    found = values(table, column)
    if found.dtype.kind in "iu":
        return tuple(str(label) for label in range(int(found.max(initial=-1)) + 1))
    return tuple(str(label) for label in np.unique(found))


def _labels(table: pa.Table, column: str, names: tuple[str, ...]) -> Numbers:
    found = values(table, column)
    if found.dtype.kind in "iu":
        return found.astype(np.int64)
    place = {name: label for label, name in enumerate(names)}
    unknown = sorted({str(label) for label in found} - set(place))
    if unknown:
        raise DataError(f"column {column!r} has the class {unknown[0]!r}, which the training part does not have")
    return np.array([place[str(label)] for label in found], dtype=np.int64)


def local_folder(path: str) -> Path:
    """Return the folder that an option names; `~` is the user's home."""
    return Path(path).expanduser()
