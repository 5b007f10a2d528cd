"""Clients with unlike class mixtures, drawn from a Dirichlet distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.data.partitions.base import PartitionMethod
from fedmr_merge.seeds import generator

_MAX_DRAWS = 1000


@dataclass(frozen=True)
class Dirichlet(PartitionMethod):
    """Class mixtures drawn from a Dirichlet distribution, in one of two forms.

    `balanced`, as FedMR's authors do it: class by class, the clients' shares are drawn from Dir(alpha), where a client
    that already holds examples/clients or more gets none of the next class; everything is redrawn until every client
    has at least `min_examples`.

    `hsu`, the plain form of Hsu et al. 2019: client by client, the shares of the classes are drawn from
    Dir(alpha * p), p being their shares of all examples, and as many examples as every other client gets are drawn
    accordingly, without replacement; a class that is used up is drawn no more.
    """

    alpha: Annotated[float, Gt(0)] = 0.5  #: α, concentration: the smaller, the less alike the clients
    clients: Annotated[int, Ge(1)] = 100  #: number of clients
    min_examples: Annotated[int, Ge(1)] = 10  #: what every client gets at least
    form: Literal["balanced", "hsu"] = "balanced"

    def split(self, data: Data, seed: int) -> Partition:
        """Deal the training examples to the clients."""
        labels = self.classes_of(data)
        if len(labels) < self.clients * self.min_examples:
            raise DataError(
                f"{len(labels)} training examples do not suffice for {self.clients} clients "
                f"with at least {self.min_examples} each",
                hint="take fewer clients or a smaller min_examples",
            )
        rng = generator(seed, "partition: dirichlet")
        if self.form == "hsu":
            return Partition.of(self._draw_equal(labels, data.num_classes, rng))
        for _ in range(_MAX_DRAWS):
            owners = self._draw(labels, data.num_classes, rng)
            if np.bincount(owners, minlength=self.clients).min() >= self.min_examples:
                return Partition.of([np.flatnonzero(owners == client) for client in range(self.clients)])
        raise DataError(
            f"{_MAX_DRAWS} draws with alpha {self.alpha} gave none in which each of {self.clients} clients "
            f"has at least {self.min_examples} examples",
            hint="take a larger alpha, fewer clients or a smaller min_examples",
        )

    def _draw_equal(
        self, labels: NDArray[np.int64], num_classes: int, rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """Return the examples of every client; the clients' sizes differ by one at most."""
        members = [rng.permutation(np.flatnonzero(labels == label)) for label in range(num_classes)]
        left = np.array([len(examples) for examples in members])
        prior = np.maximum(left / len(labels), np.finfo(np.float64).tiny)
        sizes = np.full(self.clients, len(labels) // self.clients)
        sizes[: len(labels) % self.clients] += 1
        clients = []
        for size in sizes:
            mixture = rng.dirichlet(self.alpha * prior)
            counts = np.zeros(num_classes, dtype=np.int64)
            while counts.sum() < size:
                open_classes = left > counts
                shares = mixture * open_classes
                if not shares.sum() > 0:
                    # All the classes that this client prefers are used up.
                    shares = open_classes * prior
                drawn = rng.multinomial(size - counts.sum(), shares / shares.sum())
                counts += np.minimum(drawn, left - counts)
            left -= counts
            clients.append(
                np.concatenate([members[label][left[label] :][:count] for label, count in enumerate(counts)])
            )
        return clients

    def _draw(self, labels: NDArray[np.int64], num_classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the client of every example."""
        owners = np.empty(len(labels), dtype=np.int64)
        held = np.zeros(self.clients, dtype=np.int64)
        for label in range(num_classes):
            members = rng.permutation(np.flatnonzero(labels == label))
            open_to_more = held < len(labels) / self.clients
            shares = rng.dirichlet(np.full(self.clients, self.alpha)) * open_to_more
            if not members.size:
                continue
            if not shares.sum():
                # A tiny alpha can put the whole class on clients that are full: it is spread over the others.
                shares = open_to_more.astype(float)
            # Cutting at rounded cumulative shares hands out every example exactly once.
            cuts = np.rint(np.cumsum(shares / shares.sum()) * len(members)).astype(np.int64)[:-1]
            counts = np.diff(cuts, prepend=0, append=len(members))
            owners[members] = np.repeat(np.arange(self.clients), counts)
            held += counts
        return owners
