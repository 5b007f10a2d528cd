"""Any image classification set in parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmr_merge.federated.data.datasets._columns import TableDataSet
from fedmr_merge.federated.data.datasets._table import read_local
from fedmr_merge.paths import local_path

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Parquet(TableDataSet):
    """A folder of parquet files, laid out as a data set of the Hub: `train-….parquet` and `test-….parquet`."""

    path: str  #: the folder

    def read(self, split: str, columns: list[str]) -> pa.Table:
        """Read columns of a split."""
        return read_local(local_path(self.path), split, columns)
