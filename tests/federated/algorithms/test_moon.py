from __future__ import annotations

import math

import pytest
import torch
from small_federation import Normalised, digest, make_federation

from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.moon import Moon
from fedmr_merge.federated.protocol import Batch, Context, State, initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.tasks._classification import CrossEntropy


def run(federation, algorithm, rounds):
    state = algorithm.start(federation, initial_state(federation))
    return list(run_rounds(federation, algorithm, state, first_round=1, rounds=rounds))


@pytest.mark.parametrize("architecture", [None, Normalised()])
def test_without_the_contrast_it_is_fedavg(architecture):
    federation = make_federation(architecture)
    found = run(federation, Moon(mu=0.0), 3)[-1].state
    expected = run(federation, FedAvg(), 3)[-1].state
    assert digest(State(found.cohort, found.global_weights)) == digest(expected)


class Angle:
    """A model whose feature is its one weight, and whose logits are always equal."""

    loss = CrossEntropy()

    def features(self, weights, images):
        return weights["w"].expand(len(images), 2)

    def head(self, weights, features):
        return features.new_zeros(len(features), 2)

    @property
    def frozen(self):
        return self


def test_the_contrast_by_hand():
    """Features (1, 0), the global model's (1, 0), the previous one's (0, 1): cosines 1, 0, at τ = 0.5 logits 2, 0."""
    batch = Batch(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), torch.arange(3))
    context = Context(
        shared={"global": {"w": torch.tensor([2.0, 0.0])}}, own={"previous": {"w": torch.tensor([0.0, 3.0])}}
    )
    weights = {"w": torch.tensor([1.0, 0.0], requires_grad=True)}
    loss = Moon(mu=5.0, temperature=0.5).objective(Angle(), weights, batch, context)
    expected = math.log(2) - 5.0 * math.log(math.exp(2) / (math.exp(2) + 1))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_previous_models_are_what_each_client_trained_last():
    federation = make_federation()
    first, second = run(federation, Moon(), 2)
    again = set(first.clients) - set(second.clients)
    assert again  # some clients took part in the first round only
    for client in again:
        name = f"client/{client:05d}/fc1.weight"
        assert torch.equal(second.state.tensors[name], first.state.tensors[name])
    kept = {int(name.split("/")[1]) for name in second.state.tensors}
    assert kept == set(first.clients) | set(second.clients)
    _, context = Moon().dispatch(federation, second.state, (*sorted(again), 4))
    client = min(again)
    assert torch.equal(context.own["previous"]["fc1.weight"][0], first.state.tensors[f"client/{client:05d}/fc1.weight"])


def test_a_client_that_comes_for_the_first_time_has_a_constant_contrast():
    federation = make_federation()
    (plain,) = run(federation, FedAvg(), 1)
    (result,) = run(federation, Moon(mu=1.0), 1)
    torch.testing.assert_close(
        dict(result.state.global_weights), dict(plain.state.global_weights), rtol=1e-5, atol=1e-6
    )
    assert result.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"] + math.log(2), rel=1e-5)
