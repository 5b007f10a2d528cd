from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_federation import digest, make_data, make_federation

from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.algorithms.independent import Independent
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.federation import Training, open_federation
from fedmr_merge.federated.models.cnn import Cnn
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import begin_stage, run_rounds
from fedmr_merge.federated.training.engines.loop import Loop
from fedmr_merge.federated.training.local_training import LocalTraining, train_cohort


def test_every_round_has_batches_of_its_own():
    # One client, so that nothing but the order of its examples can differ.
    partition = Partition.of([range(40)])
    federation = open_federation(Cnn(), make_data(), partition, Training(clients_per_round=1, batch_size=4), seed=0)
    state = FedAvg().start(federation, initial_state(federation))
    (first,) = run_rounds(federation, FedAvg(), state, first_round=1, rounds=1)
    (second,) = run_rounds(federation, FedAvg(), state, first_round=2, rounds=1)
    assert digest(first.state) != digest(second.state)


def test_rounds_are_run_as_they_are_asked_for():
    federation = make_federation()
    state = FedAvg().start(federation, initial_state(federation))
    results = run_rounds(federation, FedAvg(), state, first_round=4, rounds=10**6)
    assert [next(results).round for _ in range(2)] == [4, 5]


def test_train_loss_is_the_mean_over_examples():
    federation = make_federation()
    algorithm = FedAvg()
    state = algorithm.start(federation, initial_state(federation))
    (result,) = run_rounds(federation, algorithm, state, first_round=1, rounds=1)
    cohort, context = algorithm.dispatch(federation, state, result.clients)
    task = LocalTraining(federation, algorithm, cohort, context, result.clients, round=1)
    trained = train_cohort(Loop(), task)
    sizes = torch.tensor([len(federation.partition.clients[client]) for client in result.clients])
    expected = (torch.tensor(trained.losses) * sizes).sum() / sizes.sum()
    assert result.metrics["train_loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_a_round_says_how_alike_the_trained_models_are():
    federation = make_federation()
    state = Independent().start(federation, initial_state(federation))
    (result,) = run_rounds(federation, Independent(), state, first_round=1, rounds=1)
    assert result.metrics["similarity"] == pytest.approx(result.state.cohort.similarity(federation.trainable))
    alone = make_federation(clients_per_round=1)
    state = Independent().start(alone, initial_state(alone))
    (result,) = run_rounds(alone, Independent(), state, first_round=1, rounds=1)
    assert "similarity" not in result.metrics


def test_a_stage_begins_as_its_method_starts():
    federation = make_federation()
    previous = initial_state(federation)
    assert digest(begin_stage(federation, FedAvg(), previous)) == digest(FedAvg().start(federation, previous))


FORMER_FACTS = {
    "engine: clients that memory has room for at once": 2,
    "privacy: rounds with uniformly drawn clients": 4,
}


def test_states_that_version_0_1_0_saved_are_understood():
    federation = make_federation(engine="vmap")
    saved = replace(FedAvg().start(federation, initial_state(federation)), facts=FORMER_FACTS)
    (result,) = run_rounds(federation, FedAvg(), saved, first_round=5, rounds=1)
    present = {"engine_fitting_clients": 2, "privacy_sampled_rounds": 4}
    assert result.state.facts == present
    assert begin_stage(federation, Independent(), saved).facts == present
    # A cohort that is split otherwise rounds otherwise.
    now = replace(saved, facts=present)
    (again,) = run_rounds(federation, FedAvg(), now, first_round=5, rounds=1)
    assert digest(again.state) == digest(result.state)


def test_a_state_carries_the_plan_of_its_round_alone():
    federation = make_federation()
    state = FedMR().start(federation, initial_state(federation))
    assert state.plan is None
    first, second = run_rounds(federation, FedMR(), state, first_round=1, rounds=2)
    assert first.state.plan.permutations != second.state.plan.permutations
    (averaged,) = run_rounds(
        federation, FedAvg(), begin_stage(federation, FedAvg(), second.state), first_round=3, rounds=1
    )
    assert averaged.state.plan is None
