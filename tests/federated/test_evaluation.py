from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from small_federation import Normalised, make_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated import evaluation
from fedmr_merge.federated.evaluation import (
    evaluate,
    recalibrate,
    recalibration_batches,
)


def test_accuracy_and_loss_are_those_of_the_whole_test_part(monkeypatch):
    federation = make_federation()
    weights = {name: torch.randn_like(tensor) * 0.1 for name, tensor in federation.module.state_dict().items()}
    monkeypatch.setattr(evaluation, "_BATCH_SIZE", 7)  # 20 test images: two batches and a rest
    found = evaluate(federation, weights)
    federation.module.load_state_dict(weights)
    with torch.no_grad():
        logits = federation.module(federation.data.normalise(federation.data.test_images))
    labels = federation.data.test_labels
    assert found.examples == 20
    assert found.metrics["accuracy"] == (logits.argmax(1) == labels).sum().item() / 20
    assert found.metrics["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_model_that_knows_nothing_has_the_loss_of_guessing():
    federation = make_federation()
    found = evaluate(federation, federation.module.state_dict())
    assert found.metrics["loss"] == pytest.approx(math.log(3), rel=1e-6)


def test_by_class_is_the_same_and_counts_which_class_is_taken_for_which(monkeypatch):
    federation = make_federation()
    weights = {name: torch.randn_like(tensor) * 0.1 for name, tensor in federation.module.state_dict().items()}
    monkeypatch.setattr(evaluation, "_BATCH_SIZE", 7)
    whole = evaluate(federation, weights)
    found = evaluate(federation, weights, in_detail=True)
    assert (found.metrics, found.examples) == (whole.metrics, whole.examples)
    assert not whole.details
    federation.module.load_state_dict(weights)
    with torch.no_grad():
        predicted = federation.module(federation.data.normalise(federation.data.test_images)).argmax(1)
    labels = federation.data.test_labels
    for label in range(3):
        for other in range(3):
            assert found.details["confusion"][label][other] == ((labels == label) & (predicted == other)).sum()
    assert found.details["class_examples"] == torch.bincount(labels, minlength=3).tolist()


def test_chosen_examples_of_a_part_are_evaluated_alone(monkeypatch):
    federation = make_federation()
    weights = {name: torch.randn_like(tensor) * 0.1 for name, tensor in federation.module.state_dict().items()}
    chosen = torch.tensor([3, 30, 7])
    monkeypatch.setattr(evaluation, "_BATCH_SIZE", 2)
    found = evaluate(federation, weights, "train", chosen)
    federation.module.load_state_dict(weights)
    with torch.no_grad():
        logits = federation.module(federation.data.normalise(federation.data.train_images[chosen]))
    labels = federation.data.train_labels[chosen]
    assert found.examples == 3
    assert found.metrics["accuracy"] == (logits.argmax(1) == labels).sum().item() / 3
    assert found.metrics["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


class TestRecalibration:
    """Statistics of batch normalisations, estimated anew."""

    def test_statistics_are_means_over_the_batches(self):
        federation = make_federation(Normalised())
        weights = {name: tensor.clone() for name, tensor in federation.module.state_dict().items()}
        before = {name: tensor.clone() for name, tensor in weights.items()}
        batches = list(recalibration_batches(federation, 3))
        assert [len(images) for images in batches] == [4, 4, 4]
        found = recalibrate(federation.module, weights, iter(batches))
        activations = [federation.module.conv(images).detach().transpose(0, 1).flatten(1) for images in batches]
        means = torch.stack([values.mean(1) for values in activations]).mean(0)
        variances = torch.stack([values.var(1) for values in activations]).mean(0)
        torch.testing.assert_close(found["norm.running_mean"], means)
        torch.testing.assert_close(found["norm.running_var"], variances)
        for name, tensor in before.items():
            assert torch.equal(weights[name], tensor), name
            assert torch.equal(federation.module.state_dict()[name], tensor), name
            if name not in ("norm.running_mean", "norm.running_var"):
                assert torch.equal(found[name], tensor), name
        assert not found["norm.running_mean"].is_inference()

    def test_nothing_is_dropped_out(self):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(8)]
        module, batches = torch.nn.Sequential(*layers), [torch.randn(6, 4) for _ in range(2)]
        before = torch.get_rng_state()
        found = recalibrate(module, module.state_dict(), batches)
        means = torch.stack([layers[0](inputs).mean(0) for inputs in batches]).mean(0)
        torch.testing.assert_close(found["2.running_mean"], means)
        assert torch.equal(torch.get_rng_state(), before)

    def test_batches_are_different_examples_of_the_clients_always_the_same(self):
        federation = make_federation()
        first, again = (torch.cat(list(recalibration_batches(federation, 10))) for _ in range(2))
        assert torch.equal(first, again)
        assert len(torch.unique(first.flatten(1), dim=0)) == 40
        assert not torch.equal(first, torch.cat(list(recalibration_batches(make_federation(seed=1), 10))))

    def test_a_model_without_statistics_stays_as_it_is(self):
        federation = make_federation()
        weights = federation.module.state_dict()
        assert recalibrate(federation.module, weights, recalibration_batches(federation, 1)) == weights

    def test_more_than_there_is_is_refused(self):
        with pytest.raises(TrainingError, match="11 batches of 4 examples cannot be had from the clients' 40"):
            next(recalibration_batches(make_federation(), 11))
