"""What a way to deal examples to clients is: the base of the plug-ins in this folder."""

from __future__ import annotations

from fedmr_merge.federated.data.images import ImageData
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.plugin import Plugin


class PartitionMethod(Plugin):
    """Base of the partitions in `partitions/`, one file each; the dataclass fields are the options."""

    def split(self, data: ImageData, seed: int) -> Partition:
        """Deal the training examples to the clients; the same partition for the same data and seed.

        Raises DataError when the options cannot be satisfied.
        """
        raise NotImplementedError
