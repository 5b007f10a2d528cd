"""Every client trains on what is on its own machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.data.partitions.base import PartitionMethod


@dataclass(frozen=True)
class Nodes(PartitionMethod):
    """Every client has the data of its own machine, which never leave it; `fedmr-merge docs flower` shows how."""

    clients: Annotated[int, Ge(1), Le(100_000)]  #: the number of machines with data

    def split(self, data: Data, seed: int) -> Partition:
        """Raise DataError: a run in one process has the data of no client."""
        raise DataError(
            "the clients' data are on their own machines, as data.partition is of kind nodes",
            hint="run the recipe there: --on flower:NAME; or rehearse it here: --on flower, with deployment.rehearsal",
        )
