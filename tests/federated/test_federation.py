from __future__ import annotations

import pytest
import torch
from small_federation import Normalised, make_data, make_federation

from fedmr_merge.errors import DataError, TrainingError
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.federation import Training, open_federation
from fedmr_merge.federated.models.cnn import Cnn


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
        ({"precision": "tf32"}, "training.precision tf32 is a GPU's"),
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
