"""The clients that the data set itself knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.data.partitions.base import PartitionMethod


@dataclass(frozen=True)
class Natural(PartitionMethod):
    """Every example belongs to whom it comes from: the writers of FEMNIST, or a column of the data set."""

    min_examples: Annotated[int, Ge(1)] = 1  #: a client with fewer training examples is left out

    def split(self, data: Data, seed: int) -> Partition:
        """Give every client its own examples; the seed changes nothing."""
        if data.train_clients is None:
            raise DataError(
                "this data set does not say whose example is whose",
                hint="choose another partition; femnist does, and hub:ORG/NAME and parquet with data.client_column",
            )
        owners = data.train_clients.cpu().numpy()
        order = np.argsort(owners, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(owners[order])) + 1)
        kept = [indices for indices in groups if len(indices) >= self.min_examples]
        if not kept:
            raise DataError(
                f"none of {len(groups)} clients has at least {self.min_examples} training examples",
                hint="lower data.partition.min_examples",
            )
        return Partition.of(kept)
