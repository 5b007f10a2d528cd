from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_federation import Normalised, make_federation

from fedmr_merge.errors import RuleError
from fedmr_merge.federated.algorithms.fedmut import FedMut
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.protocol import State, Trained, initial_state
from fedmr_merge.federated.rounds import run_rounds


def one_round(federation, algorithm):
    state = algorithm.start(federation, initial_state(federation))
    (result,) = run_rounds(federation, algorithm, state, first_round=1, rounds=1)
    return state, result.state


@pytest.mark.parametrize("slots", [2, 3, 6])
def test_mutants_are_the_mean_plus_or_minus_the_update(slots):
    federation = make_federation(Normalised(), clients_per_round=slots)
    before, after = one_round(federation, FedMut(radius=2.0, acceleration=0.0))
    for name in federation.trainable:
        mean = after.global_weights[name]
        update = mean - before.global_weights[name]
        if name in ("unused", "conv.bias"):
            # No loss depends on the one, and normalisation takes the other out again.
            assert update.abs().max() < 1e-6
            continue
        most = update.abs().argmax()
        moved = (after.cohort.tensors[name] - mean).flatten(1)[:, most]
        signs = (moved / (2.0 * update.flatten()[most])).round()
        torch.testing.assert_close(after.cohort.tensors[name], torch.stack([mean + 2.0 * s * update for s in signs]))
        assert sorted(signs.tolist()) == [-1.0] * (slots // 2) + [0.0] * (slots % 2) + [1.0] * (slots // 2)
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert all(torch.equal(tensor, after.global_weights[name]) for tensor in after.cohort.tensors[name])


class OneLayer:
    """Four slots and one weight: what `aggregate` needs of a federation."""

    trainable = ("w",)
    layers = {"w": "layer"}  # noqa: RUF012 - a stand-in

    def generator(self, *place):
        return np.random.default_rng(0)


def test_acceleration_by_hand():
    """From 1 to a mean of 3, Δ = 2: along it 3 + αΔ, against it 3 − (1 − β)αΔ, with β = 0.5, 0.25, 0, 0."""
    algorithm = FedMut(radius=1.0, acceleration=0.5, acceleration_rounds=2)
    trained = Trained(
        Cohort({"w": torch.tensor([[1.0], [2.0], [4.0], [5.0]])}), (0, 1, 2, 3), (1,) * 4, (1,) * 4, (0.0,) * 4, 0.1
    )
    facts, found = {}, []
    for _ in range(4):
        state = State(Cohort({"w": torch.ones(4, 1)}), {"w": torch.ones(1)}, facts=facts)
        state = algorithm.aggregate(OneLayer(), state, trained, 7)
        assert state.global_weights["w"].tolist() == [3.0]
        facts = json.loads(json.dumps(state.facts))
        found.append(sorted(state.cohort.tensors["w"].flatten().tolist()))
    assert found == [[2.0, 2.0, 5.0, 5.0], [1.5, 1.5, 5.0, 5.0], [1.0, 1.0, 5.0, 5.0], [1.0, 1.0, 5.0, 5.0]]


def test_a_layer_mutates_as_one_and_layers_apart():
    federation = make_federation(clients_per_round=6)
    _, after = one_round(federation, FedMut())
    signs = {}
    for name in federation.trainable:
        sign = (after.cohort.tensors[name] - after.global_weights[name]).flatten(1)
        reference = sign[0].abs().argmax()
        signs.setdefault(federation.layers[name], set()).add(tuple((sign[:, reference] > 0).tolist()))
    assert len({frozenset(found) for found in signs.values()}) > 1


def test_radius_0_averages_without_mutation():
    _, after = one_round(make_federation(), FedMut(radius=0.0))
    for name, tensor in after.cohort.tensors.items():
        assert all(torch.equal(model, after.global_weights[name]) for model in tensor)


def test_an_unknown_rule_is_told_at_the_start():
    with pytest.raises(RuleError):
        one_round(make_federation(), FedMut(rule="no such rule"))
