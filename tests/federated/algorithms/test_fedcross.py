from __future__ import annotations

import pytest
import torch
from small_federation import digest, make_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.fedcross import FedCross
from fedmr_merge.federated.algorithms.independent import Independent
from fedmr_merge.federated.cohort import Cohort, Mean
from fedmr_merge.federated.protocol import State, Trained, initial_state
from fedmr_merge.federated.rounds import run_rounds


class TwoWeights:
    trainable = ("w",)

    def mean(self, cohort):
        return Mean(cohort.mean())


def crossed(models, round=1, **options):
    cohort = Cohort({"w": torch.tensor(models), "n": torch.arange(len(models))})
    count = len(models)
    trained = Trained(cohort, tuple(range(count)), (1,) * count, (1,) * count, (0.0,) * count, 0.1)
    return FedCross(**options).aggregate(TwoWeights(), State(cohort, cohort.slot(0)), trained, round)


def test_in_order_by_hand():
    """Round 2 of 3 models: the partner of i is i + (2 mod 2) + 1."""
    state = crossed([[0.0], [10.0], [20.0]], round=2, alpha=0.9, partner="in_order")
    assert state.cohort.tensors["w"].flatten().tolist() == pytest.approx([1.0, 11.0, 18.0])
    assert state.cohort.tensors["n"].tolist() == [0, 1, 2]
    assert state.global_weights["w"].item() == pytest.approx(10.0)


def test_in_order_meets_every_other_model_in_k_minus_1_rounds():
    partners = [
        FedCross(partner="in_order")._partners(TwoWeights(), Cohort({"w": torch.zeros(4, 1)}), round)
        for round in (1, 2, 3)
    ]
    for slot in range(4):
        assert {found[slot] for found in partners} == set(range(4)) - {slot}
    assert all(sorted(found) == [0, 1, 2, 3] for found in partners)  # every model is a partner once


def test_partners_by_similarity():
    """Models at 0, 10 and 80 degrees."""
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 80.0]))
    cohort = Cohort({"w": torch.stack([angles.cos(), angles.sin()], dim=1)})
    assert FedCross(partner="most_similar")._partners(TwoWeights(), cohort, 1) == [1, 0, 1]
    assert FedCross(partner="least_similar")._partners(TwoWeights(), cohort, 1) == [2, 2, 0]


def test_alpha_1_is_independent_training():
    federation = make_federation()
    results = []
    for algorithm in (FedCross(alpha=1.0), Independent()):
        state = algorithm.start(federation, initial_state(federation))
        results.append(list(run_rounds(federation, algorithm, state, first_round=1, rounds=2))[-1].state)
    assert digest(results[0]) == digest(results[1])


def test_needs_two_models():
    federation = make_federation(clients_per_round=1)
    with pytest.raises(TrainingError, match="at least 2 models"):
        FedCross().start(federation, initial_state(federation))
