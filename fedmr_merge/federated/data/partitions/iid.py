"""Every client draws from the same distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.data.partitions.base import PartitionMethod
from fedmr_merge.seeds import generator


@dataclass(frozen=True)
class Iid(PartitionMethod):
    """Shuffle the examples and deal them out evenly: the clients' sizes differ by one at most."""

    clients: Annotated[int, Ge(1)] = 100  #: number of clients

    def split(self, data: Data, seed: int) -> Partition:
        """Deal the training examples to the clients."""
        examples = data.examples("train")
        if examples < self.clients:
            raise DataError(
                f"{examples} training examples do not suffice for {self.clients} clients",
                hint="take fewer clients",
            )
        order = generator(seed, "partition: iid").permutation(examples)
        return Partition.of(np.array_split(order, self.clients))
