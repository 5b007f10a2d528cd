from __future__ import annotations

import pytest
import torch
from small_federation import Normalised, digest, make_federation

from fedmr_merge.errors import LayerMismatchError, TrainingError
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.initialisation import initial_state_from
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds


@pytest.fixture
def federation():
    return make_federation(Normalised())


def models(count):
    return [Normalised().initialise((1, 4, 4), 3, seed + 10).state_dict() for seed in range(count)]


def test_one_model_is_the_global_one(federation):
    (model,) = models(1)
    state = initial_state_from(federation, [dict(reversed(model.items()))], ["a"])
    assert state.cohort.slots == 1
    assert list(state.global_weights) == list(federation.module.state_dict())
    for name, tensor in model.items():
        assert torch.equal(state.cohort.slot(0)[name], tensor)
        assert torch.equal(state.global_weights[name], tensor)
    # A copy of what it was started from; its slot may be the memory of its global model, as nobody writes into a state.
    state.cohort.tensors["fc.weight"].zero_()
    assert model["fc.weight"].any()


def test_the_federations_own_weights_are_its_initial_state(federation):
    state = initial_state_from(federation, [federation.module.state_dict()], ["a"])
    assert digest(state) == digest(initial_state(federation))


def test_k_models_are_the_slots_and_their_mean_the_global_one(federation):
    three = models(3)
    state = initial_state_from(federation, three, ["a", "b", "c"])
    assert state.cohort.slots == 3
    for slot, model in enumerate(three):
        assert all(torch.equal(state.cohort.slot(slot)[name], tensor) for name, tensor in model.items())
    mean = torch.stack([model["fc.weight"] for model in three]).mean(0)
    torch.testing.assert_close(state.global_weights["fc.weight"], mean)


@pytest.mark.parametrize("algorithm", [FedAvg(), FedMR()])
def test_every_method_starts_from_them(federation, algorithm):
    for count in (1, 3):
        state = algorithm.start(federation, initial_state_from(federation, models(count), ["a", "b", "c"][:count]))
        (result,) = run_rounds(federation, algorithm, state, first_round=1, rounds=1)
        assert result.metrics["train_loss"] > 0


def test_half_precision_is_cast(federation):
    (model,) = models(1)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.items()}
    state = initial_state_from(federation, [half], ["a"])
    assert state.global_weights["fc.weight"].dtype == torch.float32
    assert torch.equal(state.global_weights["fc.weight"], model["fc.weight"].half().float())


def test_another_number_of_models_is_refused(federation):
    with pytest.raises(TrainingError, match="2 models cannot be dispatched to 3 clients per round"):
        initial_state_from(federation, models(2), ["a", "b"])


def test_every_difference_is_named_with_its_checkpoint(federation):
    three = [dict(model) for model in models(3)]
    del three[1]["fc.bias"]
    three[2]["fc.weight"] = torch.zeros(4, 12)
    three[2]["norm.num_batches_tracked"] = torch.tensor(1.0)
    three[2]["extra"] = torch.zeros(1)
    with pytest.raises(LayerMismatchError) as caught:
        initial_state_from(federation, three, ["one", "two", "three"])
    text = str(caught.value)
    assert len(caught.value.differences) == 4
    assert "fc.bias: expected float32 [3], found absent (two)" in text
    assert "fc.weight: expected float32 [3, 12], found float32 [4, 12] (three)" in text
    assert "extra: expected absent, found float32 [1] (three)" in text
