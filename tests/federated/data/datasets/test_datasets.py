from __future__ import annotations

import sys

import pytest
import torch

from fedmr_merge.federated.catalogue import DATA_SETS
from fedmr_merge.federated.data.datasets.digits import Digits


def test_digits_holds_out_the_same_share_of_every_class():
    data = Digits().load()
    assert data.image_shape == (1, 8, 8)
    assert data.num_classes == 10
    assert len(data.train_labels) + len(data.test_labels) == 1797
    held_out = torch.bincount(data.test_labels, minlength=10)
    everything = held_out + torch.bincount(data.train_labels, minlength=10)
    assert (held_out.float() / everything - 0.2).abs().max() < 0.005


def test_digits_parts_are_disjoint_and_real():
    data = Digits().load()
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits().data).view(-1, 1, 8, 8)
    kept = torch.cat([data.train_images, data.test_images]).float() * 16 / 255
    sort = lambda images: sorted(map(tuple, images.round().flatten(1).int().tolist()))  # noqa: E731
    assert sort(kept) == sort(pixels)


def test_digits_are_read_without_scikit_learn(monkeypatch):
    """To import it takes a second."""
    expected = Digits().load()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert torch.equal(Digits().load().train_images, expected.train_images)


def test_digits_normalises_to_zero_mean_and_unit_deviation():
    data = Digits().load()
    values = data.normalise(data.train_images)
    assert values.dtype == torch.float32
    assert abs(values.mean().item()) < 1e-3
    assert abs(values.std().item() - 1) < 1e-3


def test_normalise_is_subtract_mean_divide_by_deviation():
    data = Digits().load()
    pixels = data.test_images[:3]
    torch.testing.assert_close(data.normalise(pixels), (pixels / 255 - data.mean[0]) / data.std[0])


@pytest.mark.parametrize("name", ["digits"])
def test_a_data_set_is_the_same_every_time(name):
    data_set = DATA_SETS.find(name)()
    assert data_set.name == name
    first, again = data_set.load(), data_set.load()
    for part in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(first, part), getattr(again, part))
