from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from small_federation import Normalised, make_data, make_federation
from torch import nn

from fedmr_merge.errors import DataError, TrainingError
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.federation import Training, describe_last_batches, open_federation
from fedmr_merge.federated.models.base import Architecture, Classifier
from fedmr_merge.federated.models.cnn import Cnn
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.options import Faults, check_options


def test_more_clients_than_there_are_cannot_be_selected():
    with pytest.raises(TrainingError, match="4 clients per round cannot be selected from 2"):
        open_federation(Cnn(), make_data(), Partition.of([[0], [1]]), Training(clients_per_round=4), seed=0)


def test_a_partition_of_other_data_is_refused():
    with pytest.raises(DataError, match="training example 40, but there are only 40"):
        open_federation(Cnn(), make_data(), Partition.of([[0], [40]]), Training(clients_per_round=1), seed=0)


def test_forwards_have_their_own_modes_and_leave_the_template_alone():
    federation = make_federation(Normalised())
    template = {name: tensor.clone() for name, tensor in federation.module.state_dict().items()}
    training, evaluation = federation.training_forward, federation.evaluation_forward
    images = federation.data.normalise(federation.data.test_images)
    weights = {name: tensor.clone() for name, tensor in template.items()}
    with torch.no_grad():
        evaluated = evaluation(weights, images)
        assert all(torch.equal(weights[name], tensor) for name, tensor in template.items())
        # In training a batch normalisation uses the batch's statistics, and counts the batch.
        assert not torch.allclose(training(weights, images), evaluated)
        assert weights["norm.num_batches_tracked"] == 1
    assert all(torch.equal(tensor, template[name]) for name, tensor in federation.module.state_dict().items())


def test_head_on_features_is_the_whole_model():
    federation = make_federation()
    weights = {name: torch.randn_like(tensor) for name, tensor in federation.module.state_dict().items()}
    images = federation.data.normalise(federation.data.test_images)
    forward = federation.evaluation_forward
    assert torch.equal(forward.head(weights, forward.features(weights, images)), forward(weights, images))


def test_trainable_are_the_parameters():
    assert make_federation(Normalised()).trainable == (
        "unused",
        "conv.weight",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "fc.weight",
        "fc.bias",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "tf32"}, "training.precision tf32 needs a GPU"),
        ({"cohort_chunk": 2}, "engine loop trains one"),
        ({"engine": "loop", "cohort_chunk": 2}, "engine loop trains one"),
    ],
)
def test_an_option_that_cannot_apply_is_refused(options, message):
    with pytest.raises(TrainingError, match=message) as caught:
        make_federation(**options)
    assert caught.value.hint


def test_auto_is_loop_on_a_cpu():
    assert make_federation().engine == "loop"
    assert make_federation(engine="vmap").engine == "vmap"


def test_a_forward_with_the_modules_own_tensors_is_the_same():
    federation = make_federation(Normalised())
    forward, images = federation.training_forward, federation.data.normalise(federation.data.test_images)
    copy = {name: tensor.detach().clone() for name, tensor in forward.own.items()}
    assert forward.own.keys() == federation.module.state_dict().keys()
    assert torch.equal(forward(forward.own, images), forward(copy, images))
    assert all(torch.equal(forward.own[name], tensor) for name, tensor in copy.items())
    assert forward.own["norm.num_batches_tracked"] == 1


def test_a_frozen_forward_changes_no_statistics():
    federation = make_federation(Normalised())
    weights = {name: tensor.clone() for name, tensor in federation.module.state_dict().items()}
    frozen = federation.training_forward.frozen
    frozen.features(weights, federation.data.normalise(federation.data.test_images))
    assert all(torch.equal(weights[name], tensor) for name, tensor in federation.module.state_dict().items())
    assert frozen.frozen is frozen


class _OnePixel(Classifier):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.fc = nn.Linear(16, 3)

    def features(self, images):
        return self.norm(images.flatten(1))

    def head(self, features):
        return self.fc(features)


@dataclass(frozen=True)
class OnePixel(Architecture):
    """Its batch normalisation sees one value per channel of an image."""

    def build(self, image_shape, num_classes):
        return _OnePixel()


def test_lone_examples_are_decided_before_any_training():
    """In batches of 4, clients of 5 and 9 examples have one left."""
    merged, dropped = make_federation(OnePixel()), make_federation(OnePixel(), last_batch="drop")
    assert merged.lone_clients == (4, 5)
    assert merged.epoch_step_sizes(4) == (5,)
    assert dropped.epoch_step_sizes(4) == (4,)
    assert merged.epoch_step_sizes(1) == dropped.epoch_step_sizes(1) == (4, 3)
    assert "the epochs of 2 clients (4, 5) end with one example" in describe_last_batches(merged)
    assert "it is added to the batch before (training.last_batch: merge)" in describe_last_batches(merged)
    assert "it is left out (training.last_batch: drop)" in describe_last_batches(dropped)
    assert describe_last_batches(make_federation(last_batch="drop")) is None
    with pytest.raises(TrainingError, match=r"one example, with which the epochs of 2 clients \(4, 5\) end") as caught:
        make_federation(OnePixel(), last_batch="keep")
    assert "training.last_batch" in caught.value.hint


def test_what_no_choice_of_last_batch_can_train_is_refused():
    with pytest.raises(TrainingError, match=r"training\.batch_size is 1, but the batch normalisation"):
        make_federation(OnePixel(), batch_size=1)
    with pytest.raises(TrainingError, match="every client has a single example"):
        open_federation(OnePixel(), make_data(), Partition.of([[0], [1]]), Training(clients_per_round=1), seed=0)
    some = open_federation(OnePixel(), make_data(), Partition.of([[0], [1, 2]]), Training(clients_per_round=1), seed=0)
    assert some.epoch_step_sizes(0) == ()
    assert describe_last_batches(some).endswith("1 client (0) with no other example: no step is taken there")


@dataclass(frozen=True)
class Foreign(Architecture):
    def build(self, image_shape, num_classes):
        return F.relu


def test_a_module_of_another_kind_is_refused_in_one_line():
    with pytest.raises(TrainingError, match="builds a function, which is not a torch module") as caught:
        make_federation(Foreign())
    assert "Architecture" in caught.value.hint
    with pytest.raises(TrainingError, match="must be an Architecture, Linear is not one"):
        make_federation(nn.Linear(16, 3))


def test_values_without_sense_are_refused():
    faults = Faults()
    check_options(Training, {"batch_size": 10**12, "local_epochs": 10**9}, "training", faults)
    assert [str(fault) for fault in faults] == [
        "training.local_epochs: should be less than or equal to 10000, found 1000000000",
        "training.batch_size: should be less than or equal to 1000000, found 1000000000000",
    ]


def test_class_weights_are_as_many_as_classes():
    with pytest.raises(TrainingError, match=r"training\.class_weights has 2 weights, and the data has 3 classes"):
        make_federation(class_weights=(1.0, 2.0))


class _Headless(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 3)

    def forward(self, images):
        return self.fc(images.flatten(1))


@dataclass(frozen=True)
class Headless(Architecture):
    """Says nothing of features and a head."""

    def build(self, shape, outputs):
        return _Headless()


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_a_model_without_features_and_head_is_trained_by_all_methods_that_need_none(name):
    federation = make_federation(Headless())
    method = ALGORITHMS.find(name)()
    if name in ("moon", "fedgen"):
        with pytest.raises(TrainingError, match=rf"^{name} .*model test-federation does not say what its features"):
            method.start(federation, initial_state(federation))
        return
    state = method.start(federation, initial_state(federation))
    (result,) = run_rounds(federation, method, state, first_round=1, rounds=1)
    assert result.metrics["test_loss"] > 0


def test_a_model_for_other_examples_is_refused():
    @dataclass(frozen=True)
    class ForTokens(Headless):
        takes = "tokens"

    with pytest.raises(TrainingError, match="takes tokens, and these data are images"):
        make_federation(ForTokens())
