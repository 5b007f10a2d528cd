from __future__ import annotations

import pytest
import torch
from small_federation import Normalised, make_federation

from fedmr_merge.errors import RuleError
from fedmr_merge.federated.algorithms.fedmut import FedMut
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds


def one_round(federation, algorithm):
    state = algorithm.start(federation, initial_state(federation))
    (result,) = run_rounds(federation, algorithm, state, first_round=1, rounds=1)
    return state, result.state


@pytest.mark.parametrize("slots", [2, 3, 6])
def test_mutants_are_the_mean_plus_or_minus_the_update(slots):
    federation = make_federation(Normalised(), clients_per_round=slots)
    before, after = one_round(federation, FedMut(radius=2.0))
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
