from __future__ import annotations

import numpy as np
import pytest
from small_federation import SIZES, make_federation

from fedmr_merge.federated.algorithms.clusamp import CluSamp
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.selection import SELECTIONS, _loss
from fedmr_merge.options import Faults, check_options


@pytest.mark.parametrize("selection", SELECTIONS)
def test_selects_k_different_clients_told_by_seed_and_round(selection):
    federation = make_federation()
    algorithm, state = FedAvg(selection=selection), initial_state(federation)
    rounds = [algorithm.select(federation, state, round) for round in range(1, 30)]
    assert all(len(set(selected)) == 3 and set(selected) <= set(range(6)) for selected in rounds)
    assert len(set(rounds)) > 1
    assert rounds == [algorithm.select(make_federation(), state, round) for round in range(1, 30)]
    assert rounds != [algorithm.select(make_federation(seed=1), state, round) for round in range(1, 30)]


def test_uniform_selects_every_client_as_often():
    counts = _counts("uniform", 2000, clients_per_round=2)
    assert counts / counts.sum() == pytest.approx(np.full(6, 1 / 6), abs=0.02)


def test_by_size_selects_in_proportion_to_size():
    counts = _counts("by_size", 2000, clients_per_round=1)
    assert counts / counts.sum() == pytest.approx(np.array(SIZES) / sum(SIZES), abs=0.03)


def test_by_size_sends_a_client_to_every_slot_as_often():
    federation = make_federation()
    algorithm, state = FedAvg(selection="by_size"), initial_state(federation)
    selected = np.array([algorithm.select(federation, state, round) for round in range(1, 2001)])
    in_slots = (selected == np.argmax(SIZES)).sum(axis=0)
    assert in_slots / in_slots.sum() == pytest.approx(np.full(3, 1 / 3), abs=0.05)


def test_round_robin_gives_every_client_its_turn():
    algorithm, federation = FedAvg(selection="round_robin"), make_federation(clients_per_round=4)
    state = initial_state(federation)
    selected = [algorithm.select(federation, state, round) for round in range(1, 4)]
    assert np.bincount(np.concatenate(selected)).tolist() == [2] * 6
    # A client is not always in the same slot.
    many = [algorithm.select(make_federation(), state, round) for round in range(1, 40)]
    assert len({clients.index(0) for clients in many if 0 in clients}) == 3


def test_by_loss_selects_where_the_global_model_is_worst():
    federation = make_federation(clients_per_round=3)  # 6 candidates: everyone
    state = FedAvg().start(federation, initial_state(federation))
    (trained,) = run_rounds(federation, FedAvg(), state, first_round=1, rounds=1)
    losses = [_loss(federation, trained.state.global_weights, client) for client in range(6)]
    worst = set(np.argsort(losses)[-3:].tolist())
    assert set(FedAvg(selection="by_loss").select(federation, trained.state, 2)) == worst


def test_a_method_that_selects_by_itself_takes_no_other_selection():
    faults = Faults()
    check_options(CluSamp, {"selection": "uniform"}, "stages[0].clusamp", faults)
    assert [fault.path for fault in faults] == ["stages[0].clusamp.selection"]
    assert not check_options(FedAvg, {"selection": "clusters"}, "", faults)


def _counts(selection, rounds, **training):
    federation = make_federation(**training)
    algorithm, state = FedAvg(selection=selection), initial_state(federation)
    selected = [algorithm.select(federation, state, round) for round in range(1, rounds + 1)]
    return np.bincount(np.concatenate(selected), minlength=6)
