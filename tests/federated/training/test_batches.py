from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_federation import Normalised, digest, make_federation

from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.training.batches import batch_sizes, clients_with_a_lone_example


def test_batches_by_hand():
    for last_batch in ("keep", "drop", "merge"):
        assert batch_sizes(8, 4, last_batch) == (4, 4)
        assert batch_sizes(10, 4, last_batch) == (4, 4, 2)
        assert batch_sizes(3, 4, last_batch) == (3,)
    assert batch_sizes(9, 4, "keep") == (4, 4, 1)
    assert batch_sizes(9, 4, "drop") == (4, 4)
    assert batch_sizes(9, 4, "merge") == (4, 5)
    assert batch_sizes(1, 4, "keep") == (1,)
    assert batch_sizes(1, 4, "drop") == batch_sizes(1, 4, "merge") == ()


@given(examples=st.integers(1, 500), batch_size=st.integers(2, 60))
def test_only_a_lone_example_makes_a_difference(examples, batch_size):
    kept, dropped, merged = (batch_sizes(examples, batch_size, choice) for choice in ("keep", "drop", "merge"))
    assert sum(kept) == examples
    if kept[-1] != 1:
        assert kept == dropped == merged
        return
    assert sum(dropped) == examples - 1
    assert sum(merged) == (examples if examples > 1 else 0)
    assert 1 not in dropped + merged
    assert max(merged, default=0) <= batch_size + 1


def test_clients_with_a_lone_example():
    assert clients_with_a_lone_example((4, 5, 1, 8, 7, 9), 4) == (1, 2, 5)
    assert clients_with_a_lone_example((1, 2), 1) == (0, 1)


@pytest.mark.parametrize("architecture", [None, Normalised()])
def test_a_model_that_can_train_on_one_example_does(architecture):
    """Clients of 5 and 9 examples have one left: without batch normalisation, or with several values a channel."""
    digests = set()
    for last_batch in ("keep", "drop", "merge"):
        federation = make_federation(architecture, clients_per_round=6, last_batch=last_batch)
        assert not federation.lone_clients
        state = FedMR().start(federation, initial_state(federation))
        (result,) = run_rounds(federation, FedMR(), state, first_round=1, rounds=1)
        digests.add(digest(result.state))
    assert len(digests) == 1
