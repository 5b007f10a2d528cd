"""Clients of very unlike sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.data.partition import Indices, Partition
from fedmr_merge.federated.data.partitions.base import PartitionMethod
from fedmr_merge.seeds import generator


@dataclass(frozen=True)
class Quantity(PartitionMethod):
    """Every client draws from the same distribution, but their sizes follow a power law.

    Beyond the minimum, the k-th largest client gets a share in proportion to k to the power of -exponent.
    """

    exponent: Annotated[float, Gt(0)] = 1.0  #: the larger, the less alike the sizes
    clients: Annotated[int, Ge(1)] = 100  #: number of clients
    min_examples: Annotated[int, Ge(1)] = 10  #: what every client gets at least

    def split(self, data: Data, seed: int) -> Partition:
        """Deal the training examples to the clients."""
        examples = data.examples("train")
        if examples < self.clients * self.min_examples:
            raise DataError(
                f"{examples} training examples do not suffice for {self.clients} clients "
                f"with at least {self.min_examples} each",
                hint="take fewer clients or a smaller min_examples",
            )
        rng = generator(seed, "partition: quantity")
        sizes = rng.permutation(self._sizes(examples))
        return Partition.of(np.split(rng.permutation(examples), np.cumsum(sizes)[:-1]))

    def _sizes(self, examples: int) -> Indices:
        """Return the sizes from the largest to the smallest; their sum is `examples`."""
        shares = np.arange(1, self.clients + 1, dtype=np.float64) ** -self.exponent
        free = examples - self.clients * self.min_examples
        # Differences of rounded cumulative shares add up to all there is.
        ends = np.rint(np.cumsum(shares) / shares.sum() * free).astype(np.int64)
        sizes: Indices = self.min_examples + np.diff(ends, prepend=0)
        return sizes
