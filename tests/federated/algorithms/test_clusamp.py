from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from small_federation import SIZES, make_federation

from fedmr_merge.federated.algorithms._urns import clusters_that_fit, fill_urns
from fedmr_merge.federated.algorithms.clusamp import CluSamp
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
    draw = np.random.default_rng(seed)
    known = np.flatnonzero(draw.integers(0, 2, len(sizes))).tolist()
    urns = fill_urns(sizes, slots, known, between(np.vstack([np.zeros(2), draw.normal(size=(len(known), 2))])))
    assert (urns >= 0).all()
    assert urns.sum(axis=1).tolist() == [sum(sizes)] * slots
    assert urns.sum(axis=0).tolist() == [size * slots for size in sizes]


def between(points):
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def naive_clusters(weights, capacity, distances):
    """The largest branches that fit, of the tree that scipy makes of the distances between all clients."""
    branches = [[client] for client in range(len(weights))]
    for left, right in linkage(squareform(distances, checks=False), "ward")[:, :2].astype(int):
        merged = (branches[left] or []) + (branches[right] or [])
        fits = branches[left] is not None and branches[right] is not None and weights[merged].sum() <= capacity
        branches.append(sorted(merged) if fits else None)
        if fits:
            branches[left] = branches[right] = []
    return [branch for branch in branches if branch]


@given(
    clients=st.integers(2, 60),
    share=st.floats(0, 1),
    slots=st.integers(2, 10),
    order=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_clusters_are_those_of_the_distances_between_all_clients(clients, share, slots, order, seed):
    draw = np.random.default_rng(seed)
    known = np.flatnonzero(draw.random(clients) < share)
    points = np.zeros((clients, 5))
    points[known] = draw.normal(size=(len(known), 5))
    rows = np.vstack([np.zeros(5), points[known]])
    all_distances, distances = (np.abs(p[:, None] - p[None]) ** order for p in (points, rows))
    all_distances, distances = (d.sum(-1) ** (1 / order) for d in (all_distances, distances))
    weights = draw.integers(1, 50, clients) * slots
    capacity = int(weights.sum() // slots)
    found = clusters_that_fit(weights, capacity, known.tolist(), distances)
    assert sorted(found) == sorted(naive_clusters(weights, capacity, all_distances))


def test_a_selection_of_ten_thousand_clients_takes_less_than_two_seconds():
    """The time grows with the clients that have taken part, and not with all of them."""
    draw = np.random.default_rng(0)
    known = sorted(draw.choice(10_000, 1500, replace=False).tolist())
    distances = between(np.vstack([np.zeros(3), draw.normal(size=(1500, 3))])).astype(np.float32)
    sizes = draw.integers(1, 100, 10_000).tolist()
    start = time.process_time()
    urns = fill_urns(sizes, 100, known, distances)
    assert time.process_time() - start < 2
    assert urns.sum(axis=1).tolist() == [sum(sizes)] * 100


def test_the_memory_of_the_method_grows_with_the_clients_that_took_part():
    federation = make_federation(clients_per_round=2)
    state = CluSamp().start(federation, initial_state(federation))
    for result in run_rounds(federation, CluSamp(), state, first_round=1, rounds=3):
        known = sum(name.startswith("client/") for name in result.state.tensors)
        assert result.state.tensors["distances between updates"].shape == (1 + known, 1 + known)


def test_a_run_of_version_0_1_0_selects_and_continues_as_it_would_have():
    federation = make_federation()
    algorithm = CluSamp()
    state = algorithm.start(federation, initial_state(federation))
    *_, last = run_rounds(federation, algorithm, state, first_round=1, rounds=1)
    tensors = dict(last.state.tensors)
    own = tensors.pop("distances between updates")
    known = sorted(int(name[7:]) for name in tensors if name.startswith("client/"))
    rows = [0 if client not in known else 1 + known.index(client) for client in range(6)]
    tensors["distances"] = own[rows][:, rows]
    old = replace(last.state, tensors=tensors)
    assert algorithm.select(federation, old, 2) == algorithm.select(federation, last.state, 2)
    ends = [list(run_rounds(federation, algorithm, s, first_round=2, rounds=2))[-1].state for s in (old, last.state)]
    assert ends[0].tensors.keys() == ends[1].tensors.keys()
    for name, tensor in ends[1].tensors.items():
        torch.testing.assert_close(ends[0].tensors[name], tensor)


def test_draws_by_that_share():
    federation = make_federation(clients_per_round=3)
    state = CluSamp().start(federation, initial_state(federation))
    drawn = [client for round in range(1, 2001) for client in CluSamp().select(federation, state, round)]
    share = np.bincount(drawn, minlength=6) / len(drawn)
    assert share == pytest.approx(np.array(SIZES) / sum(SIZES), abs=0.02)


def test_similar_clients_share_an_urn():
    """Two pairs of like clients and two urns: a round draws one of each pair."""
    distances = np.array([[0, 9, 1, 9], [9, 0, 9, 1], [1, 9, 0, 9], [9, 1, 9, 0]], dtype=float)
    distances = np.pad(distances, ((1, 0), (1, 0)), constant_values=5)
    assert fill_urns((5, 5, 5, 5), 2, range(4), distances).tolist() == [[10, 0, 10, 0], [0, 10, 0, 10]]


def test_a_client_that_holds_most_fills_urns_by_itself():
    """A client with 6 of 8 examples and 4 urns: 3 whole ones, and the other two share the last."""
    assert fill_urns((1, 6, 1), 4, [], np.zeros((1, 1))).tolist() == [[0, 8, 0]] * 3 + [[4, 0, 4]]


def test_clusters_are_branches_that_fit_an_urn():
    line = np.array([0.0, 1.0, 10.0, 11.5, 13.0])
    distances = np.pad(np.abs(line[:, None] - line[None]), ((1, 0), (1, 0)))
    assert sorted(clusters_that_fit(np.ones(5, int), 3, range(5), distances)) == [[0, 1], [2, 3, 4]]
    assert sorted(clusters_that_fit(np.ones(5, int), 2, range(5), distances)) == [[0, 1], [2, 3], [4]]
    assert sorted(clusters_that_fit(np.ones(5, int), 5, range(5), distances)) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(("distance", "order"), [("l1", 1), ("l2", 2)])
def test_distances_are_those_of_the_last_updates(distance, order):
    federation = make_federation()
    algorithm = CluSamp(distance=distance)
    state = algorithm.start(federation, initial_state(federation))
    *_, last = run_rounds(federation, algorithm, state, first_round=1, rounds=2)
    zero = torch.zeros(sum(last.state.global_weights[name].numel() for name in federation.trainable))
    updates = [zero, *(last.state.tensors[name] for name in sorted(last.state.tensors) if name.startswith("client/"))]
    expected = torch.stack([torch.stack([torch.dist(one, other, order) for other in updates]) for one in updates])
    torch.testing.assert_close(last.state.tensors["distances between updates"], expected, rtol=1e-4, atol=1e-4)


def test_the_angle_between_updates():
    tensors = {
        "distances between updates": torch.zeros(1, 1),
        "client/00000": torch.tensor([1.0, 0.0]),
        "client/00002": torch.ones(2),
    }
    found = CluSamp(distance="angle")._updated(tensors, [], [0, 2])
    assert found.rad2deg().round().tolist() == [[0, 90, 90], [90, 0, 45], [90, 45, 0]]
