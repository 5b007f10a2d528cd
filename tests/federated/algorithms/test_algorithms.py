"""What every method keeps to; a new file in algorithms/ joins by itself."""

from __future__ import annotations

import dataclasses
import math
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from small_federation import digest, make_federation, restored
from torch.func import grad_and_value, vmap

from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.protocol import Batch, Context, initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.training.local_training import LocalTraining


@pytest.fixture(params=ALGORITHMS.names())
def algorithm(request):
    return ALGORITHMS.find(request.param)()


def run(federation, algorithm, state, first, last):
    return list(run_rounds(federation, algorithm, state, first_round=first, rounds=last - first + 1))


def test_is_a_frozen_dataclass_with_defaults_that_is_short_and_documented(algorithm):
    assert dataclasses.is_dataclass(algorithm)
    assert type(algorithm).__dataclass_params__.frozen
    assert type(algorithm).__doc__
    assert ALGORITHMS.find(algorithm.name) is type(algorithm)
    module = __import__(type(algorithm).__module__, fromlist=["__file__"])
    assert len(Path(module.__file__).read_text().splitlines()) < 120


def test_a_round_has_what_is_recorded_of_it(algorithm):
    federation = make_federation()
    results = run(federation, algorithm, algorithm.start(federation, initial_state(federation)), 1, 2)
    expected = {name: (tensor.dtype, tensor.shape) for name, tensor in federation.module.state_dict().items()}
    assert [result.round for result in results] == [1, 2]
    for result in results:
        assert result.method == algorithm.name
        assert len(result.clients) == 3
        # Clustered sampling may draw a client more than once.
        assert len(set(result.clients)) == 3 or algorithm.name == "clusamp"
        assert set(result.clients) <= set(range(6))
        assert result.state.cohort.slots in (1, 3)
        assert set(result.metrics) >= {"train_loss", "test_accuracy", "test_loss"}
        assert all(np.isfinite(value) for value in result.metrics.values())
        found = result.state.global_weights
        assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == expected
        slot = result.state.cohort.slot(0)
        assert {name: (tensor.dtype, tensor.shape) for name, tensor in slot.items()} == expected
    assert results[0].clients != results[1].clients


def test_learns(algorithm):
    federation = make_federation(clients_per_round=6, local_epochs=5, lr=0.15, momentum=0.7)
    results = run(federation, algorithm, algorithm.start(federation, initial_state(federation)), 1, 3)
    assert results[-1].metrics["test_loss"] < 0.6 * math.log(3)  # far below that of guessing among 3 classes


def test_goes_on_from_any_saved_state_with_the_same_bytes(algorithm):
    straight = run(
        make_federation(), algorithm, algorithm.start(make_federation(), initial_state(make_federation())), 1, 3
    )
    for done in (1, 2):
        resumed = run(make_federation(), algorithm, restored(straight[done - 1].state), done + 1, 3)
        assert digest(resumed[-1].state) == digest(straight[-1].state)
        assert resumed[-1].metrics == straight[-1].metrics


def test_draws_from_the_seed_alone(algorithm):
    digests = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)
        random.seed(noise)
        states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        federation = make_federation()
        result = run(federation, algorithm, algorithm.start(federation, initial_state(federation)), 1, 2)[-1]
        digests.append(digest(result.state))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.random.get_state()[1].tolist() == states[1]
        assert random.getstate() == states[2]
    assert digests[0] == digests[1]
    other = make_federation(seed=1)
    assert digest(run(other, algorithm, algorithm.start(other, initial_state(other)), 1, 2)[-1].state) != digests[0]


def test_changes_nothing_that_it_was_given(algorithm):
    federation = make_federation()
    previous = initial_state(federation)
    before = digest(previous)
    state = algorithm.start(federation, previous)
    started = digest(state)
    module = {name: tensor.clone() for name, tensor in federation.module.state_dict().items()}
    images = federation.data.train_images.clone()
    first, second = run(federation, algorithm, state, 1, 2)
    after_first = digest(first.state)
    run(federation, algorithm, first.state, 2, 2)
    assert digest(previous) == before
    assert digest(state) == started
    assert digest(first.state) == after_first != digest(second.state)
    assert torch.equal(federation.data.train_images, images)
    assert all(torch.equal(module[name], tensor) for name, tensor in federation.module.state_dict().items())


@cache
def after_a_round(method):
    federation, earlier = make_federation(local_epochs=1), ALGORITHMS.find(method)()
    return run(federation, earlier, earlier.start(federation, initial_state(federation)), 1, 1)[-1].state


@pytest.mark.parametrize("before", ALGORITHMS.names())
def test_follows_every_method(algorithm, before):
    federation, ended = make_federation(local_epochs=1), after_a_round(before)
    state = algorithm.start(federation, ended)
    assert all(torch.equal(state.global_weights[name], tensor) for name, tensor in ended.global_weights.items())
    assert run(federation, algorithm, state, 2, 2)[0].round == 2


def test_objective_is_the_same_for_one_client_and_mapped_over_the_cohort(algorithm):
    federation = make_federation(momentum=0.0)
    # A round first, so that what the method keeps is not all zeros.
    state = run(federation, algorithm, algorithm.start(federation, initial_state(federation)), 1, 1)[-1].state
    selected = algorithm.select(federation, state, 2)
    cohort, context = algorithm.dispatch(federation, state, selected)
    task = LocalTraining(federation, algorithm, cohort, context, selected, round=2)
    batches = [task.batch(task.schedule(slot)[0][:3]) for slot in range(3)]

    def step(weights, batch, context):
        return algorithm.objective(federation.training_forward, weights, batch, context)

    stacked = Batch(*map(torch.stack, zip(*batches, strict=True)))
    mapped = vmap(grad_and_value(step), in_dims=(0, 0, Context(shared=None, own=0)))
    gradients, losses = mapped(dict(cohort.tensors), stacked, context)
    for slot, batch in enumerate(batches):
        gradient, loss = grad_and_value(step)(cohort.slot(slot), batch, task.context_of(slot))
        torch.testing.assert_close(losses[slot], loss)
        for name, tensor in gradient.items():
            torch.testing.assert_close(gradients[name][slot], tensor, rtol=1e-4, atol=1e-6)
