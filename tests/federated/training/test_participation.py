"""Clients that do not answer and clients that take fewer steps, by method and engine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_federation import Normalised, digest, make_federation, restored

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.independent import Independent
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.training.engines.loop import Loop
from fedmr_merge.federated.training.local_training import LocalTraining
from fedmr_merge.federated.training.participation import Stragglers, draw_absent, draw_stragglers
from fedmr_merge.federated.training.privacy import Privacy


def run(federation, algorithm, rounds):
    state = algorithm.start(federation, initial_state(federation))
    return list(run_rounds(federation, algorithm, state, first_round=1, rounds=rounds))


def test_shares_are_those_that_were_asked_for():
    rng = np.random.default_rng(0)
    assert sum(draw_absent(0.7, 10_000, rng)) == pytest.approx(3000, abs=150)
    assert not any(draw_absent(1.0, 10_000, rng))
    assert [sum(draw_stragglers(Stragglers(share, 1), 5, rng)) for share in (0.05, 0.3, 0.5, 1.0)] == [0, 2, 3, 5]


def test_those_that_answered_are_averaged():
    """Against the models that each client trains when all answer."""
    federation, everyone = make_federation(availability=0.5), make_federation()
    results = run(federation, FedAvg(), 6)
    assert {len(result.absent) for result in results} > {1}
    state = FedAvg().start(federation, initial_state(federation))
    for result in results:
        cohort, context = FedAvg().dispatch(federation, state, result.clients)
        trained, _ = Loop().train(LocalTraining(everyone, FedAvg(), cohort, context, result.clients, result.round))
        answered = [slot for slot, client in enumerate(result.clients) if client not in result.absent]
        expected = state.global_weights
        if answered:
            sizes = [federation.partition.sizes[result.clients[slot]] for slot in answered]
            expected = Cohort.stack([trained.slot(slot) for slot in answered]).mean(weights=sizes)
        assert all(torch.equal(result.state.global_weights[name], tensor) for name, tensor in expected.items())
        assert result.metrics["bytes_up"] * 3 == result.metrics["bytes_down"] * len(answered)
        state = result.state


def test_a_slot_without_an_answer_keeps_what_was_dispatched():
    federation = make_federation(availability=0.5)
    state = Independent().start(federation, initial_state(federation))
    seen = 0
    for result in run_rounds(federation, Independent(), state, first_round=1, rounds=4):
        for slot, client in enumerate(result.clients):
            kept = all(map(torch.equal, result.state.cohort.slot(slot).values(), state.cohort.slot(slot).values()))
            assert kept == (client in result.absent)
            seen += kept
        state = result.state
    assert seen


@pytest.mark.parametrize("algorithm", [FedAvg(), Independent()])
def test_the_similarity_of_a_round_is_that_of_the_models_that_were_trained(algorithm):
    federation, counts = make_federation(availability=0.4), set()
    for result in run(federation, algorithm, 10):
        trained = [slot for slot, client in enumerate(result.clients) if client not in result.absent]
        counts.add(len(trained))
        assert ("similarity" in result.metrics) == (len(trained) > 1)
        if len(trained) > 1 and result.state.cohort.slots > 1:
            expected = result.state.cohort.similarity(federation.trainable, trained)
            assert result.metrics["similarity"] == expected
    assert counts >= {0, 1, 2}


def test_stragglers_take_their_first_steps():
    """Clients of 9, 4 and 12 examples in batches of 4 take 6, 2 and 6 steps in two epochs, a straggler 2."""
    federation, plain = make_federation(stragglers=Stragglers(0.67, 2)), make_federation()
    models = Independent().start(federation, initial_state(federation)).cohort
    tasks = [LocalTraining(each, Independent(), models, None, (5, 0, 2), 1) for each in (federation, plain)]
    steps = [[len(task.step_sizes(slot)) for slot in range(3)] for task in tasks]
    assert steps[1] == [6, 2, 6]
    assert all(count in (2, whole) for count, whole in zip(*steps, strict=True))
    assert steps[0] != steps[1]
    for slot, count in enumerate(steps[0]):
        assert all(map(torch.equal, tasks[0].schedule(slot), tasks[1].schedule(slot)[:count]))


@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_engines_agree_and_runs_resume_with_every_method(method):
    algorithm, options = ALGORITHMS.find(method)(), {"availability": 0.5, "stragglers": Stragglers(0.5, 1)}
    looped, mapped = (make_federation(Normalised(), engine=engine, **options) for engine in ("loop", "vmap"))
    results = run(looped, algorithm, 3)
    assert any(result.absent for result in results)
    for result in results:
        assert all(math.isfinite(value) for value in result.metrics.values())
    (resumed,) = run_rounds(looped, algorithm, restored(results[1].state), first_round=3, rounds=1)
    assert digest(resumed.state) == digest(results[2].state)
    (together,) = run_rounds(mapped, algorithm, results[1].state, first_round=3, rounds=1)
    assert together.absent == results[2].absent
    pair = (dict(result.state.global_weights) for result in (together, results[2]))
    torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-5)


def test_privacy_counts_on_an_answer_of_every_client():
    with pytest.raises(TrainingError, match=r"training\.privacy accounts for rounds in which every selected client"):
        make_federation(availability=0.5, privacy=Privacy(clip=1.0, noise_multiplier=1.0))
