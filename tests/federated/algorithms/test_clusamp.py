from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_federation import SIZES, make_federation

from fedmr_merge.federated.algorithms.clusamp import CluSamp, _clusters, fill_urns
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds


@given(
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=12),
    slots=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_the_expected_weight_of_a_client_is_its_share_of_the_examples(sizes, slots, seed):
    """Fraboni et al. 2021, proposition 1: every urn is full, and a client is in them K times its share altogether."""
    points = np.random.default_rng(seed).normal(size=(len(sizes), 2))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    urns = fill_urns(sizes, slots, distances)
    assert (urns >= 0).all()
    assert urns.sum(axis=1).tolist() == [sum(sizes)] * slots
    assert urns.sum(axis=0).tolist() == [size * slots for size in sizes]


def test_draws_by_that_share():
    federation = make_federation(clients_per_round=3)
    state = CluSamp().start(federation, initial_state(federation))
    drawn = [client for round in range(1, 2001) for client in CluSamp().select(federation, state, round)]
    share = np.bincount(drawn, minlength=6) / len(drawn)
    assert share == pytest.approx(np.array(SIZES) / sum(SIZES), abs=0.02)


def test_similar_clients_share_an_urn():
    """Two pairs of like clients and two urns: a round draws one of each pair."""
    distances = np.array([[0, 9, 1, 9], [9, 0, 9, 1], [1, 9, 0, 9], [9, 1, 9, 0]], dtype=float)
    assert fill_urns((5, 5, 5, 5), 2, distances).tolist() == [[10, 0, 10, 0], [0, 10, 0, 10]]


def test_a_client_that_holds_most_fills_urns_by_itself():
    """A client with 6 of 8 examples and 4 urns: 3 whole ones, and the other two share the last."""
    assert fill_urns((1, 6, 1), 4, np.zeros((3, 3))).tolist() == [[0, 8, 0]] * 3 + [[4, 0, 4]]


def test_clusters_are_branches_that_fit_an_urn():
    line = np.array([0.0, 1.0, 10.0, 11.5, 13.0])
    distances = np.abs(line[:, None] - line[None])
    assert sorted(_clusters(np.array([1, 1, 1, 1, 1]), 3, distances)) == [[0, 1], [2, 3, 4]]
    assert sorted(_clusters(np.array([1, 1, 1, 1, 1]), 2, distances)) == [[0, 1], [2, 3], [4]]
    assert sorted(_clusters(np.array([1, 1, 1, 1, 1]), 5, distances)) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(("distance", "order"), [("l1", 1), ("l2", 2)])
def test_distances_are_those_of_the_last_updates(distance, order):
    federation = make_federation()
    algorithm = CluSamp(distance=distance)
    state = algorithm.start(federation, initial_state(federation))
    *_, last = run_rounds(federation, algorithm, state, first_round=1, rounds=2)
    zero = torch.zeros(sum(last.state.global_weights[name].numel() for name in federation.trainable))
    updates = [last.state.tensors.get(f"client/{client:05d}", zero) for client in range(6)]
    expected = torch.stack([torch.stack([torch.dist(one, other, order) for other in updates]) for one in updates])
    torch.testing.assert_close(last.state.tensors["distances"], expected, rtol=1e-4, atol=1e-4)


def test_the_angle_between_updates():
    tensors = {"distances": torch.zeros(3, 3), "client/00000": torch.tensor([1.0, 0.0]), "client/00001": torch.ones(2)}
    found = CluSamp(distance="angle")._distances(tensors, [0, 1])
    assert found.rad2deg().round().tolist() == [[0, 45, 90], [45, 0, 90], [90, 90, 0]]
