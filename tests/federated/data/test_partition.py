from __future__ import annotations

import json

import numpy as np
import pytest
from small_federation import make_data

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.partition import Partition, missing_classes


def test_json_round_trip():
    partition = Partition.of([[4, 0], [1, 3, 2]])
    again = Partition.from_json(json.loads(json.dumps(partition.to_json())))
    assert [indices.tolist() for indices in again.clients] == [[0, 4], [1, 2, 3]]
    assert again.sizes == (2, 3)


def test_class_counts():
    counts = Partition.of([[0, 1, 4], [2, 3]]).class_counts(np.array([0, 2, 1, 1, 2]), num_classes=4)
    assert counts.tolist() == [[1, 0, 2, 0], [0, 2, 0, 0]]


def test_classes_that_no_client_has_are_named():
    data = make_data(np.array([0, 1, 1, 3]), classes=4)
    assert missing_classes(Partition.of([[0, 1], [2]]), data) == ("class 2", "class 3")
    assert missing_classes(Partition.of([[0, 1], [3]]), data) == ("class 2",)


def test_arrays_are_read_only_copies():
    mine = np.array([2, 1])
    partition = Partition.of([mine])
    mine[0] = 9
    assert partition.clients[0].tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        partition.clients[0][0] = 5


@pytest.mark.parametrize(
    ("clients", "culprit"),
    [
        ([[0, 1], [1]], "example 1 away more than once"),
        ([[0], []], "client 1 has no examples"),
        ([[-1]], "example -1"),
        ([], "no examples"),
    ],
)
def test_a_faulty_partition_is_refused(clients, culprit):
    with pytest.raises(DataError, match=culprit):
        Partition.of(clients)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"clients": [[0]]},
        {"format_version": 1},
        {"format_version": 1, "clients": [0]},
        {"format_version": 1, "clients": [[0, True]]},
        {"format_version": 1, "clients": [[0.5]]},
    ],
)
def test_json_of_something_else_is_refused(value):
    with pytest.raises(DataError):
        Partition.from_json(value)


def test_the_sizes_of_ten_thousand_clients_are_counted_once():
    """They are asked for several times for each client of a round."""
    partition = Partition.of([[client] for client in range(10_000)])
    assert partition.sizes == (1,) * 10_000
    assert partition.sizes is partition.sizes
