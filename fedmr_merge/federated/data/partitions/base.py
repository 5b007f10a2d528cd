"""What a way to deal examples to clients is: the base of the plug-ins in this folder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.plugin import Plugin


class PartitionMethod(Plugin):
    """Base of the partitions in `partitions/`, one file each; the dataclass fields are the options."""

    def split(self, data: Data, seed: int) -> Partition:
        """Deal the training examples to the clients; the same partition for the same data and seed.

        Raises DataError when the options cannot be satisfied.
        """
        raise NotImplementedError

    def classes_of(self, data: Data) -> NDArray[np.int64]:
        """Return the class of every training example. Raises DataError where examples have none."""
        if not data.num_classes:
            raise DataError(
                f"partition {self.name} deals examples by their class, and the targets of these data are not classes",
                hint="choose iid or quantity, or natural with a column that names the clients",
            )
        labels: NDArray[np.int64] = data.targets("train").cpu().numpy()
        return labels
