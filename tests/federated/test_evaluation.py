from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from small_federation import make_federation

from fedmr_merge.federated import evaluation
from fedmr_merge.federated.evaluation import evaluate


def test_accuracy_and_loss_are_those_of_the_whole_test_part(monkeypatch):
    federation = make_federation()
    weights = {name: torch.randn_like(tensor) * 0.1 for name, tensor in federation.module.state_dict().items()}
    monkeypatch.setattr(evaluation, "_BATCH_SIZE", 7)  # 20 test images: two batches and a rest
    found = evaluate(federation.evaluation_forward, weights, federation.data)
    federation.module.load_state_dict(weights)
    with torch.no_grad():
        logits = federation.module(federation.data.normalise(federation.data.test_images))
    labels = federation.data.test_labels
    assert found.examples == 20
    assert found.accuracy == (logits.argmax(1) == labels).sum().item() / 20
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_model_that_knows_nothing_has_the_loss_of_guessing():
    federation = make_federation()
    found = evaluate(federation.evaluation_forward, federation.module.state_dict(), federation.data)
    assert found.loss == pytest.approx(math.log(3), rel=1e-6)
