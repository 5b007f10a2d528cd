from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_federation import Normalised, digest, make_federation

import fedmr_merge
from fedmr_merge.errors import RuleError, TrainingError
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.algorithms.independent import Independent
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.protocol import State, initial_state
from fedmr_merge.federated.rounds import run_rounds


def start(federation, algorithm):
    return algorithm.start(federation, initial_state(federation))


def one_round(federation, algorithm, state, round):
    (result,) = run_rounds(federation, algorithm, state, first_round=round, rounds=1)
    return result


def test_of_whole_models_is_independent_training_up_to_slot_order():
    federation = make_federation()
    whole, apart = FedMR(rule="model"), Independent()
    mixed, unmixed = start(federation, whole), start(federation, apart)
    moved = 0
    for round in range(1, 5):
        result, expected = one_round(federation, whole, mixed, round), one_round(federation, apart, unmixed, round)
        (sources,) = result.plan.permutations.values()
        moved += sources != (0, 1, 2)
        for name, tensor in expected.state.cohort.tensors.items():
            assert torch.equal(result.state.cohort.tensors[name], tensor[list(sources)])
            assert torch.equal(result.state.global_weights[name], expected.state.global_weights[name])
        # Models that changed places meet other clients from now on: each is put back before the next round.
        back = next(iter(result.plan.inverse().permutations.values()))
        cohort = Cohort({name: tensor[list(back)] for name, tensor in result.state.cohort.tensors.items()})
        mixed, unmixed = State(cohort, result.state.global_weights), expected.state
    assert moved


def test_shuffles_layers_and_loses_none():
    federation = make_federation()
    state = start(federation, FedMR())
    trained = one_round(federation, Independent(), state, 1).state.cohort
    result = one_round(federation, FedMR(), state, 1)
    assert set(result.plan.permutations) == {"conv1", "conv2", "fc1", "fc2"}
    assert len(set(result.plan.permutations.values())) > 1
    for name, tensor in result.state.cohort.tensors.items():
        sources = result.plan.permutations[federation.layers[name]]
        assert torch.equal(tensor, trained.tensors[name][list(sources)])


def test_the_global_model_is_the_unweighted_mean_of_the_trained_models():
    federation = make_federation()
    state = start(federation, FedMR())
    trained = one_round(federation, Independent(), state, 1).state.cohort
    found = one_round(federation, FedMR(), state, 1).state.global_weights
    for name, tensor in trained.tensors.items():
        torch.testing.assert_close(found[name], tensor.double().mean(dim=0).float())


def test_probability_0_is_independent_training():
    federation = make_federation()
    state = start(federation, Independent())
    found = list(run_rounds(federation, FedMR(probability=0.0), state, first_round=1, rounds=3))
    expected = list(run_rounds(federation, Independent(), state, first_round=1, rounds=3))
    assert digest(found[-1].state) == digest(expected[-1].state)


def test_starts_from_copies_of_the_mean_after_fedavg_and_goes_on_after_itself():
    federation = make_federation()
    averaged = one_round(federation, FedAvg(), start(federation, FedAvg()), 1).state
    first = FedMR().start(federation, averaged)
    assert first.cohort.slots == 3
    for slot in range(3):
        for name, tensor in first.cohort.slot(slot).items():
            assert torch.equal(tensor, averaged.global_weights[name])
    ended = one_round(federation, FedMR(), first, 2).state
    again = FedMR(rule="tensor").start(federation, ended)
    assert all(torch.equal(again.cohort.tensors[name], tensor) for name, tensor in ended.cohort.tensors.items())


def test_needs_two_models():
    federation = make_federation(clients_per_round=1)
    with pytest.raises(TrainingError, match="at least 2 models"):
        start(federation, FedMR())


def test_takes_no_other_number_of_models():
    federation = make_federation()
    model = federation.module.state_dict()
    with pytest.raises(TrainingError, match="2 models cannot be dispatched to 3 clients"):
        FedMR().start(federation, State(Cohort.stack([model, model]), model))


def test_an_unknown_rule_is_told_at_the_start():
    with pytest.raises(RuleError):
        start(make_federation(), FedMR(rule="no such rule"))


def test_gives_the_same_bytes_in_another_process():
    """Another process has other hashes of strings, and so another order of sets."""
    script = (
        "from small_federation import *\n"
        "from fedmr_merge.federated.algorithms.fedmr import FedMR\n"
        "from fedmr_merge.federated.protocol import initial_state\n"
        "from fedmr_merge.federated.rounds import run_rounds\n"
        "federation = make_federation()\n"
        "state = FedMR().start(federation, initial_state(federation))\n"
        "*_, last = run_rounds(federation, FedMR(), state, first_round=1, rounds=2)\n"
        "found = digest(last.state)\n"
    )
    here: dict[str, str] = {}
    exec(script, here)
    roots = [str(Path(fedmr_merge.__file__).parents[1]), str(Path(__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", script + "print(found)"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == here["found"]


STATISTICS = ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked")


@pytest.mark.parametrize("buffers", ["follow_layer", "average", "keep"])
@pytest.mark.parametrize("rule", ["layer", "tensor", "model"])
def test_statistics_go_where_they_are_told(buffers, rule):
    federation = make_federation(Normalised())
    state = start(federation, FedMR())
    trained = one_round(federation, Independent(), state, 1).state.cohort
    result = one_round(federation, FedMR(buffers=buffers, rule=rule), state, 1)
    plain = one_round(federation, FedMR(rule=rule), state, 1)
    for name in STATISTICS:
        found = result.state.cohort.tensors[name]
        if buffers == "average":
            expected = trained.mean()[name].expand_as(found)
        else:
            expected = trained.tensors[name] if buffers == "keep" else plain.state.cohort.tensors[name]
        assert torch.equal(found, expected), name
    # Everything that is trained moves as it would anyway, and the plan says what moved.
    for name in federation.trainable:
        assert torch.equal(result.state.cohort.tensors[name], plain.state.cohort.tensors[name])
        assert torch.equal(result.state.global_weights[name], plain.state.global_weights[name])
    if buffers != "follow_layer":
        assert result.plan.permutations["buffers"] == (0, 1, 2)


def test_a_model_without_statistics_has_no_group_of_them():
    federation = make_federation()
    result = one_round(federation, FedMR(buffers="keep"), start(federation, FedMR()), 1)
    assert set(result.plan.permutations) == {"conv1", "conv2", "fc1", "fc2"}
