"""The classification of images, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from small_federation import make_data, make_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.tasks.image_classification import ImageClassification
from fedmr_merge.federated.training.options import Training

LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]))
LABELS = torch.tensor([0, 1, 1])
TASK, DATA = ImageClassification(), make_data()


def test_accuracy_and_loss():
    found = TASK.summary(TASK.totals(LOGITS, LABELS, DATA).tolist(), 3, DATA)
    assert found["accuracy"] == 2 / 3
    assert found["loss"] == pytest.approx(-(math.log(0.5) + math.log(0.2) + math.log(0.8)) / 3, rel=1e-6)
    assert list(found) == [metric.name for metric in TASK.metrics]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, -(math.log(0.5) + math.log(0.2) + math.log(0.8)) / 3),
        # A mean that is weighted by the classes' weights.
        (
            {"class_weights": (2.0, 1.0, 1.0)},
            -(2 * math.log(0.5) + math.log(0.2) + math.log(0.8)) / 4,
        ),
        # A tenth of each label is spread over the three classes.
        (
            {"label_smoothing": 0.3},
            -(
                0.7 * (math.log(0.5) + math.log(0.2) + math.log(0.8))
                + 0.1 * math.log(0.5 * 0.25 * 0.25 * 0.2 * 0.2 * 0.6 * 0.1 * 0.8 * 0.1)
            )
            / 3,
        ),
    ],
)
def test_the_loss_that_is_trained_on(options, expected):
    assert float(TASK.loss(DATA, Training(**options))(LOGITS, LABELS)) == pytest.approx(expected, rel=1e-6)


def test_details_count_which_class_is_taken_for_which():
    found = TASK.details(TASK.tally(LOGITS, LABELS, DATA), DATA)
    assert found["confusion"] == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert found["class_examples"] == [1, 2, 0]
    assert found["class_accuracy"] == [1.0, 0.5, None]
    assert found["class_names"] == list(DATA.class_names)


def test_weights_of_other_classes_are_refused():
    with pytest.raises(TrainingError, match="class_weights has 2 weights, and the data has 3 classes"):
        make_federation(class_weights=(1.0, 2.0))
