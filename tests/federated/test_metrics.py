from __future__ import annotations

from fedmr_merge.federated.metrics import Metric

ACCURACY, LOSS = Metric("accuracy", higher_is_better=True, is_share=True), Metric("loss", higher_is_better=False)


def test_the_direction_says_which_value_is_better():
    assert (ACCURACY.best([0.2, 0.5, 0.1]), LOSS.best([0.2, 0.5, 0.1])) == (0.5, 0.1)
    assert ACCURACY.is_better(0.5, 0.4)
    assert not LOSS.is_better(0.5, 0.4)
    assert LOSS.is_better(0.3, 0.4)
    assert not ACCURACY.is_better(0.4, 0.4)
    assert not LOSS.is_better(0.4, 0.4)
    assert not ACCURACY.is_better(0.5, 0.25, by=0.25)
    assert not LOSS.is_better(0.25, 0.5, by=0.25)


def test_every_value_is_better_than_the_worst():
    assert ACCURACY.is_better(-1e300, ACCURACY.worst)
    assert LOSS.is_better(1e300, LOSS.worst)


def test_its_key_names_the_part_it_was_measured_on():
    assert ACCURACY.key == "test_accuracy"
