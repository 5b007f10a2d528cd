from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.data.validation import divide
from fedmr_merge.seeds import generator


def streams(client):
    return generator(0, "validation part", client)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6).filter(lambda sizes: max(sizes) > 1),
    share=st.floats(0.01, 0.99),
)
def test_every_example_is_trained_on_or_held_out(sizes, share):
    partition = Partition.of(np.split(np.random.default_rng(0).permutation(sum(sizes)), np.cumsum(sizes)[:-1]))
    kept, held_out = divide(partition, share, streams)
    for size, whole, rest, out in zip(sizes, partition.clients, kept.clients, held_out, strict=True):
        assert np.array_equal(np.sort(np.concatenate([rest, out])), whole)
        assert len(rest) >= 1
        assert len(out) == min(size - 1, max(1, round(share * size)))
        assert (np.diff(out) > 0).all()


def test_the_draw_of_a_client_does_not_depend_on_the_others():
    alone = divide(Partition.of([range(10)]), 0.3, streams)[1]
    beside = divide(Partition.of([range(10), range(10, 50)]), 0.3, streams)[1]
    assert np.array_equal(alone[0], beside[0])


def test_clients_of_one_example_each_have_none_to_hold_out():
    with pytest.raises(DataError, match="every client has a single example"):
        divide(Partition.of([[0], [1]]), 0.5, streams)
