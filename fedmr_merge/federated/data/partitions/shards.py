"""Clients that know few classes."""

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
class Shards(PartitionMethod):
    """Sort the examples by class, cut them into shards of one size and give every client a few of these.

    The pathological partition of McMahan et al. 2017 (AISTATS), section 3: with two shards most clients know two
    classes.
    """

    clients: Annotated[int, Ge(1)] = 100  #: number of clients
    shards_per_client: Annotated[int, Ge(1)] = 2

    def split(self, data: Data, seed: int) -> Partition:
        """Deal the training examples to the clients."""
        labels = self.classes_of(data)
        count = self.clients * self.shards_per_client
        if len(labels) < count:
            raise DataError(
                f"{len(labels)} training examples do not suffice for {count} shards",
                hint="take fewer clients or shards_per_client",
            )
        rng = generator(seed, "partition: shards")
        shuffled = rng.permutation(len(labels))
        shards = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], count)
        dealt = rng.permutation(count).reshape(self.clients, self.shards_per_client)
        return Partition.of([np.concatenate([shards[shard] for shard in own]) for own in dealt])
