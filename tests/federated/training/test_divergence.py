from __future__ import annotations

import math

import pytest
import torch
from small_federation import Normalised, digest, make_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.federation import Training
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.training.divergence import find_diverged, finite_models
from fedmr_merge.federated.training.engines.loop import Loop
from fedmr_merge.federated.training.engines.vmap import Vmap

SICK = 1  # the slot whose client diverges


@pytest.fixture
def sick(monkeypatch):
    """Spoils what one client trains, in the engines' own results."""
    for engine in (Loop, Vmap):
        real = engine.train

        def train(self, task, real=real):
            cohort, losses = real(self, task)
            tensors = {name: tensor.clone() for name, tensor in cohort.tensors.items()}
            tensors["fc.weight" if "fc.weight" in tensors else "fc2.weight"][SICK].view(-1)[0] = math.nan
            return Cohort(tensors), losses

        monkeypatch.setattr(engine, "train", train)


def one_round(algorithm, architecture=None, **training):
    federation = make_federation(architecture, **training)
    state = algorithm.start(federation, initial_state(federation))
    (result,) = run_rounds(federation, algorithm, state, first_round=1, rounds=1)
    return federation, state, result


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_a_run_fails_by_default_and_names_the_client(sick, engine):
    with pytest.raises(TrainingError, match=r"client \d diverged in round 1: its weights are not all finite$"):
        one_round(FedAvg(), engine=engine)


@pytest.mark.parametrize("policy", ["keep", "drop"])
@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_every_method_goes_on_and_says_so(sick, method, policy):
    algorithm = ALGORITHMS.find(method)()
    federation = make_federation(Normalised(), on_divergence=policy)
    state = algorithm.start(federation, initial_state(federation))
    for result in run_rounds(federation, algorithm, state, first_round=1, rounds=2):
        assert result.diverged == {result.clients[SICK]: "its weights are not all finite"}
        assert all(math.isfinite(value) for value in result.metrics.values())
        for family in (result.state.cohort.tensors, result.state.global_weights, result.state.tensors):
            assert all(torch.isfinite(tensor).all() for tensor in family.values())
        sick_client = f"client/{result.clients[SICK]:05d}"
        # The first round is the only one that this client took part in, unless it came again.
        if result.round == 1 and result.clients.count(result.clients[SICK]) == 1:
            assert not any(name.startswith(sick_client) for name in result.state.tensors)


def test_drop_leaves_the_client_out_of_the_average(sick):
    federation, state, result = one_round(FedAvg(), on_divergence="drop")
    trained, losses, _ = healthy_models(federation, state, result)
    sizes = [federation.partition.sizes[client] for client in result.clients]
    for name, tensor in result.state.global_weights.items():
        expected = (sizes[0] * trained[name][0] + sizes[2] * trained[name][2]) / (sizes[0] + sizes[2])
        torch.testing.assert_close(tensor, expected)
    expected_loss = (sizes[0] * losses[0] + sizes[2] * losses[2]) / (sizes[0] + sizes[2])
    assert result.metrics["train_loss"] == pytest.approx(expected_loss)


def test_keep_lets_the_model_that_was_sent_stand_in(sick):
    federation, state, result = one_round(FedAvg(), on_divergence="keep")
    trained, _, sent = healthy_models(federation, state, result)
    sizes = [federation.partition.sizes[client] for client in result.clients]
    for name, tensor in result.state.global_weights.items():
        models = (trained[name][0], sent[name][0], trained[name][2])
        expected = sum(size * model for size, model in zip(sizes, models, strict=True)) / sum(sizes)
        torch.testing.assert_close(tensor, expected)


def test_a_dropped_slot_of_fedmr_goes_on_with_the_mean_of_the_others(sick):
    federation, state, result = one_round(FedMR(probability=0.0), on_divergence="drop")
    trained, _, _ = healthy_models(federation, state, result)
    for name, tensor in result.state.cohort.tensors.items():
        mean = (trained[name][0] + trained[name][2]) / 2
        torch.testing.assert_close(tensor[SICK], mean)
        assert torch.equal(tensor[0], trained[name][0])
        torch.testing.assert_close(result.state.global_weights[name], mean)
    assert result.plan is not None


def test_a_kept_slot_of_fedmr_goes_on_with_what_it_was_sent(sick):
    _, state, result = one_round(FedMR(probability=0.0), on_divergence="keep")
    for name, tensor in result.state.cohort.tensors.items():
        assert torch.equal(tensor[SICK], state.cohort.tensors[name][SICK])


def test_a_round_in_which_nobody_diverges_is_the_same_under_every_policy():
    results = [one_round(FedMR(), on_divergence=policy)[2] for policy in ("fail", "keep", "drop")]
    assert len({digest(result.state) for result in results}) == 1
    assert all(not result.diverged for result in results)


@pytest.mark.parametrize("policy", ["fail", "keep", "drop"])
def test_a_round_in_which_everybody_diverges_ends_the_run(policy):
    with pytest.raises(TrainingError, match=r"client \d diverged in round 1: .* \(and 2 more of 3 clients\)"):
        one_round(FedAvg(), lr=1e30, on_divergence=policy)


@pytest.mark.parametrize("policy", ["fail", "keep"])
def test_finite_weights_that_give_no_finite_loss_end_the_run(monkeypatch, policy):
    real = Loop.train

    def train(self, task):
        cohort, losses = real(self, task)
        return Cohort({name: torch.full_like(tensor, 1e38) for name, tensor in cohort.tensors.items()}), losses

    monkeypatch.setattr(Loop, "train", train)
    with pytest.raises(TrainingError, match=r"training diverged in round 1: test_loss is (nan|inf), although"):
        one_round(FedAvg(), on_divergence=policy)


def test_a_loss_above_the_bound_is_divergence():
    cohort = Cohort({"w": torch.tensor([[1.0], [2.0], [math.inf]]), "n": torch.tensor([1, 2, 3])})
    training = Training(on_divergence="keep", divergence_loss=2.0)
    found = find_diverged(finite_models(cohort), (2.0, 2.5, 1.0), (1, 1, 1), (7, 8, 9), 1, training)
    assert found == {1: "its training loss is 2.5, above 2", 2: "its weights are not all finite"}
    assert find_diverged(
        finite_models(cohort), (2.0, 9e9, 1.0), (1, 1, 1), (7, 8, 9), 1, Training(on_divergence="keep")
    ).keys() == {2}


def healthy_models(federation, state, result):
    """Return what the clients trained before it was spoilt, by slot, their losses, and what they were sent."""
    from fedmr_merge.federated.protocol import Context
    from fedmr_merge.federated.training.local_training import LocalTraining

    cohort = state.cohort.expand(3) if state.cohort.slots == 1 else state.cohort
    cohort_trained, losses = Loop().train(LocalTraining(federation, FedAvg(), cohort, Context(), result.clients, 1))
    return cohort_trained.tensors, losses, cohort.tensors


def test_finite_weights_whose_sum_overflows_have_not_diverged():
    cohort = Cohort({"weight": torch.tensor([[3e38, 3e38], [1.0, 2.0], [math.inf, 1.0], [math.inf, -math.inf]])})
    found = find_diverged(finite_models(cohort), [0.1] * 4, [1] * 4, (5, 6, 7, 8), 1, Training(on_divergence="keep"))
    assert set(found) == {2, 3}
