"""Any table of numbers, with a class or a number to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets._features import Table, table_data
from fedmr_merge.federated.data.datasets._rows import Rows
from fedmr_merge.federated.data.datasets._splits import RowsDataSet, read_labels
from fedmr_merge.federated.data.features import FeatureData


@dataclass(frozen=True, kw_only=True)
class Tabular(RowsDataSet):
    """A table of CSV, JSON lines or parquet files, or of the Hub: columns of numbers, and one to predict.

    Every number is standardised by mean and deviation of the training part, unless `normalisation` is `none`.
    """

    target: str  #: the column to predict
    predict: Literal["class", "number"] = "class"  #: what the target is: a class has the task tabular-classification
    features: tuple[str, ...] | None = None  #: the columns to predict it from; left out: all others
    normalisation: Literal["measured", "none"] = "measured"
    """Mean and deviation of every number: those of the training part; or numbers are given to the model as they are."""

    @property
    def task(self) -> str:
        """Classification or regression, as `predict` says."""
        return "tabular-classification" if self.predict == "class" else "regression"

    def load(self) -> FeatureData:
        """Return the data."""
        if self.repo is not None and self.features is None:
            raise DataError(f"{self.name}: a table of the Hub needs its columns", hint="name them in data.features")
        classes = self.predict == "class"
        train, test = self.read([*(self.features or ()), self.target], self.target if classes else None)
        others = (self.target, self.client_column)
        names = self.features or tuple(name for name in train.columns if name not in others)
        if not names:
            raise DataError(f"{train.source}: has no column beside {self.target!r}", path=train.source)
        if classes:
            labels = read_labels(train, test, self.target)
            targets = [labels.train.astype(np.float64), labels.test.astype(np.float64)]
        else:
            targets = [train.numbers(self.target), test.numbers(self.target)]
        return table_data(
            (_matrix(train, names), targets[0]),
            (_matrix(test, names), targets[1]),
            Table(
                names=names,
                class_names=labels.names if classes else (),
                target_name=self.target,
                clients=self.clients(train),
                as_they_are=self.normalisation == "none",
            ),
        )


def _matrix(rows: Rows, names: tuple[str, ...]) -> np.ndarray:
    return np.stack([rows.numbers(name) for name in names], axis=1)
