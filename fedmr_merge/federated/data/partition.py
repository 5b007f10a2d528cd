"""The partition: which training examples belong to which client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.examples import Data

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Partition:
    """For every client the indices of its training examples, ascending; no example belongs to two clients."""

    clients: tuple[Indices, ...]

    def __post_init__(self) -> None:
        everything = np.sort(np.concatenate(self.clients)) if self.clients else np.empty(0, np.int64)
        if not everything.size:
            raise DataError("the partition holds no examples")
        for client, indices in enumerate(self.clients):
            if not indices.size:
                raise DataError(
                    f"client {client} has no examples", hint="take fewer clients, or give each a minimum", client=client
                )
        if everything[0] < 0:
            raise DataError(f"the partition names example {everything[0]}; examples count from 0")
        twice = everything[1:][everything[1:] == everything[:-1]]
        if twice.size:
            raise DataError(f"the partition gives example {twice[0]} away more than once")

    @classmethod
    def of(cls, clients: Sequence[Sequence[int] | Indices]) -> Partition:
        """Make a partition of these index lists, one per client; the arrays are copies, sorted and read-only."""
        arrays = tuple(np.sort(np.asarray(indices, dtype=np.int64)) for indices in clients)
        for array in arrays:
            array.flags.writeable = False
        return cls(arrays)

    def __len__(self) -> int:
        return len(self.clients)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of examples of every client."""
        return tuple(len(indices) for indices in self.clients)

    def class_counts(self, labels: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
        """Return how many examples of each class every client has: [clients, classes]."""
        counts = [np.bincount(labels[indices], minlength=num_classes) for indices in self.clients]
        return np.stack(counts).astype(np.int64)

    def to_json(self) -> dict[str, Any]:
        """Return the value that `partition.json` holds."""
        return {"format_version": 1, "clients": [indices.tolist() for indices in self.clients]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Partition:
        """Return the partition of a `to_json` value. Raises DataError when it is something else."""
        if not isinstance(value, Mapping) or value.get("format_version") != 1:
            raise DataError("a partition must be a JSON object with format_version 1")
        clients = value.get("clients")
        if not isinstance(clients, list) or not all(_is_indices(indices) for indices in clients):
            raise DataError("the `clients` of a partition must be a list of lists of example numbers")
        return cls.of(clients)


def require_examples(partition: Partition, data: Data) -> None:
    """Raise DataError when the data lack an example that the partition names."""
    last = max(int(indices[-1]) for indices in partition.clients)
    if last >= data.examples("train"):
        raise DataError(
            f"the partition names training example {last}, but there are only {data.examples('train')}, counted from 0",
            hint="was it made for another data set?",
        )


def missing_classes(partition: Partition, data: Data) -> tuple[str, ...]:
    """Return the names of the classes of which no client has an example: no model learns them."""
    if not data.num_classes:
        return ()
    counts = partition.class_counts(data.targets("train").cpu().numpy(), data.num_classes).sum(axis=0)
    return tuple(name for name, count in zip(data.class_names, counts, strict=True) if not count)


def _is_indices(value: object) -> bool:
    # bool is an int to Python, and `true` is not an example's number; larger numbers do not fit into an index.
    return isinstance(value, list) and all(type(item) is int and -(2**63) <= item < 2**63 for item in value)
