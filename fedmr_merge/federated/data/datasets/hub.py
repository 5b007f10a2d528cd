"""Any image classification set of the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmr_merge.federated.data.datasets._columns import TableDataSet
from fedmr_merge.federated.data.datasets._table import read_hub, read_local
from fedmr_merge.paths import local_path

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Hub(TableDataSet):
    """`hub:ORG/NAME`: a data set of the Hub, or a local copy of its parquet files."""

    config: str | None = None  #: the Hub's name of one of the data set's configurations
    path: str | None = None  #: a folder with its parquet files; nothing is downloaded then

    @property
    def hub_id(self) -> str | None:
        """Return the argument of its name."""
        return self.argument

    def read(self, split: str, columns: list[str]) -> pa.Table:
        """Read columns of a split."""
        if self.path is not None:
            folder = local_path(self.path)
            return read_local(folder / self.config if self.config else folder, split, columns)
        return read_hub(self.argument, self.config, split, columns)
