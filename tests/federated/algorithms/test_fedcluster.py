from __future__ import annotations

import pytest
from small_federation import make_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedcluster import FedCluster
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds


def test_every_cluster_has_its_turn_once_in_a_cycle():
    federation = make_federation()
    algorithm = FedCluster(clusters=3)
    clusters = {}
    for turn in range(4):
        seen = [frozenset(algorithm.select(federation, None, 1 + 3 * turn + place)) for place in range(3)]
        assert sorted(client for cluster in seen for client in cluster) == list(range(6))
        clusters[turn] = seen
    assert len({frozenset(seen) for seen in clusters.values()}) == 1  # the clusters stay,
    assert len({tuple(seen) for seen in clusters.values()}) > 1  # their order does not


def test_a_cluster_of_fewer_than_k_clients_trains_whole():
    assert len(FedCluster(clusters=3).select(make_federation(clients_per_round=3), None, 1)) == 2
    assert len(FedCluster(clusters=1).select(make_federation(clients_per_round=3), None, 1)) == 3


def test_one_cluster_of_all_clients_is_fedavg():
    federation = make_federation(clients_per_round=6, momentum=0.0)
    found = []
    for algorithm in (FedCluster(clusters=1), FedAvg()):
        state = algorithm.start(federation, initial_state(federation))
        (result,) = run_rounds(federation, algorithm, state, first_round=1, rounds=1)
        assert sorted(result.clients) == list(range(6))
        found.append(result.metrics["test_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_more_clusters_than_clients_are_refused():
    federation = make_federation()
    with pytest.raises(TrainingError, match="6 clients cannot be dealt into 7 clusters"):
        FedCluster(clusters=7).start(federation, initial_state(federation))
