"""The prediction of numbers, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small_tasks import make_features

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.data.features import Scale
from fedmr_merge.federated.tasks.regression import Regression
from fedmr_merge.federated.training.options import Training

DATA = replace(make_features(classes=False), target_scale=Scale(10.0, 2.0))
OUTPUTS, TARGETS = torch.tensor([[1.0], [0.0], [-2.0], [3.0]]), torch.tensor([0.0, 0.5, -2.0, 1.0])  # errors 1 −½ 0 2


def test_metrics_are_in_the_units_of_the_data():
    task = Regression()
    found = task.summary(task.totals(OUTPUTS, TARGETS, DATA).tolist(), 4, DATA)
    squares = 1 + 0.25 + 4
    assert found["loss"] == squares / 4
    assert found["rmse"] == pytest.approx(2 * math.sqrt(squares / 4))
    assert found["mae"] == 2 * 3.5 / 4
    mean = -0.5 / 4
    spread = sum((target - mean) ** 2 for target in (0.0, 0.5, -2.0, 1.0))
    assert found["r2"] == pytest.approx(1 - squares / spread)


def test_r2_of_a_constant_is_zero():
    task = Regression()
    assert task.summary(task.totals(OUTPUTS, torch.ones(4), DATA).tolist(), 4, DATA)["r2"] == 0.0


def test_hubers_loss_is_linear_beyond_delta():
    loss = Regression(objective="huber", delta=1.0).loss(DATA, Training())
    # e²/2 up to 1, then |e| − ½.
    assert float(loss(OUTPUTS, TARGETS)) == (0.5 + 0.125 + 0 + 1.5) / 4
    assert float(Regression().loss(DATA, Training())(OUTPUTS, TARGETS)) == 5.25 / 4


@pytest.mark.parametrize("options", [{"class_weights": (1.0, 2.0)}, {"label_smoothing": 0.1}])
def test_options_of_classes_are_refused(options):
    with pytest.raises(TrainingError, match=rf"training.{next(iter(options))} is about classes, and task regression"):
        Regression().check(DATA, Training(**options))
