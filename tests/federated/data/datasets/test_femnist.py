from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from data_layouts import write_femnist

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets.femnist import Femnist
from fedmr_merge.federated.data.partitions.natural import Natural

SIZES = {"f0001_01": 30, "f0002_12": 20, "f0003_05": 9, "f0004_44": 40}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("femnist")
    write_femnist(folder, SIZES)
    return str(folder)


def write_leaf(folder, sizes, test_size=2):
    rng = np.random.default_rng(0)
    pixels = {}
    for part in ("train", "test"):
        users = {}
        for writer, size in sizes.items():
            count = test_size if part == "test" else size - test_size
            pixels[part, writer] = rng.integers(0, 256, size=(count, 784))
            users[writer] = {"x": (pixels[part, writer] / 255).tolist(), "y": list(range(count))}
        (folder / part).mkdir(parents=True)
        # As LEAF does it, several files for a part.
        for number, writer in enumerate(users):
            content = {
                "users": [writer],
                "num_samples": [len(users[writer]["y"])],
                "user_data": {writer: users[writer]},
            }
            (folder / part / f"all_data_{number}_niid.json").write_text(json.dumps(content))
    return pixels


def test_writers_with_enough_examples_are_kept_and_a_tenth_of_each_is_held_out(table):
    data = Femnist(path=table, min_examples=20).load()
    assert torch.bincount(data.train_clients).tolist() == [27, 18, 36]
    assert len(data.test_labels) == 3 + 2 + 4
    assert data.image_shape == (1, 28, 28)
    assert data.num_classes == 62
    assert data.class_names[10] == "A"
    everything = torch.cat([data.train_images, data.test_images]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 90
    assert Natural().split(data, seed=0).sizes == (27, 18, 36)


def test_so_many_writers_are_drawn_always_the_same(table):
    first, again = (Femnist(path=table, min_examples=20, writers=2).load() for _ in range(2))
    assert len(torch.unique(first.train_clients)) == 2
    assert torch.equal(first.train_images, again.train_images)


def test_a_share_can_be_given_and_white_can_be_added(table):
    data = Femnist(path=table, min_examples=20, test_share=0.5, padding=2).load()
    assert torch.bincount(data.train_clients).tolist() == [15, 10, 20]
    assert data.image_shape == (1, 32, 32)
    assert (data.train_images[:, :, :2] == 255).all()
    plain = Femnist(path=table, min_examples=20, test_share=0.5).load()
    assert torch.equal(data.train_images[:, :, 2:-2, 2:-2], plain.train_images)


def test_leaf_json_is_read_with_its_own_division(tmp_path):
    pixels = write_leaf(tmp_path, {"w1": 12, "w2": 5, "w3": 10})
    data = Femnist(path=str(tmp_path), min_examples=10).load()
    assert torch.bincount(data.train_clients).tolist() == [10, 8]
    assert data.test_labels.tolist() == [0, 1, 0, 1]
    expected = np.concatenate([pixels["train", "w1"], pixels["train", "w3"]]).reshape(-1, 1, 28, 28)
    assert torch.equal(data.train_images, torch.from_numpy(expected.astype(np.uint8)))
    assert Natural().split(data, seed=0).sizes == (10, 8)


def test_leaf_json_can_be_divided_anew(tmp_path):
    write_leaf(tmp_path, {"w1": 12, "w2": 8})
    data = Femnist(path=str(tmp_path), min_examples=5, test_share=0.25).load()
    assert torch.bincount(data.train_clients).tolist() == [9, 6]
    assert len(data.test_labels) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_examples": 41}, "0 of 4 writers have at least 41 examples"),
        ({"min_examples": 20, "writers": 4}, "3 of 4 writers have at least 20 examples, 4 are asked for"),
    ],
)
def test_too_few_writers(table, options, message):
    with pytest.raises(DataError, match=message):
        Femnist(path=table, **options).load()


def test_a_damaged_file_is_named(tmp_path):
    write_leaf(tmp_path, {"w1": 12})
    (tmp_path / "test" / "all_data_0_niid.json").write_text('{"user_data": {"w1": {"x": [], "y": [1]}}}')
    with pytest.raises(DataError, match=r"all_data_0_niid\.json: not a file of LEAF's FEMNIST"):
        Femnist(path=str(tmp_path)).load()


def test_leaf_without_a_test_part(tmp_path):
    write_leaf(tmp_path, {"w1": 12})
    (tmp_path / "test" / "all_data_0_niid.json").unlink()
    with pytest.raises(DataError, match="there are no JSON files"):
        Femnist(path=str(tmp_path)).load()


def leaf(folder, values, label=3):
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        users = {"w": {"x": [values] * 2, "y": [label] * 2}}
        (folder / part / "all.json").write_text(json.dumps({"user_data": users}))
    return Femnist(path=str(folder), min_examples=2)


def test_whole_pixels_to_255_are_taken_as_they_are(tmp_path):
    data = leaf(tmp_path, [0, 2, 255, 128] * 196).load()
    assert data.train_images.flatten()[:4].tolist() == [0, 2, 255, 128]
    assert data.notes == (
        "the pixels are whole numbers to 255, not from 0 to 1 as LEAF writes them: they are taken as they are",
    )


@pytest.mark.parametrize(
    ("others", "expected"),
    [([0, 200] * 392, [0, 1, 0, 200]), ([0, 0.2] * 392, [0, 255, 0, 51]), ([0, 1] * 392, [0, 255, 0, 255])],
)
def test_a_writer_of_zeros_and_ones_has_the_scale_of_the_others(others, expected, tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        users = {name: {"x": [values] * 2, "y": [3] * 2} for name, values in {"a": [0, 1] * 392, "b": others}.items()}
        (tmp_path / part / "all.json").write_text(json.dumps({"user_data": users}))
    images = Femnist(path=str(tmp_path), min_examples=2).load().train_images.flatten(1)
    assert [*images[0][:2].tolist(), *images[2][:2].tolist()] == expected


def test_writers_of_two_scales_are_refused(tmp_path):
    leaf(tmp_path, [0, 200] * 392)
    users = {"v": {"x": [[0, 0.5] * 392] * 2, "y": [3] * 2}}
    (tmp_path / "train" / "more.json").write_text(json.dumps({"user_data": users}))
    with pytest.raises(DataError, match="some writers have pixels from 0 to 1, others whole ones to 255"):
        Femnist(path=str(tmp_path), min_examples=2).load()


@pytest.mark.parametrize("wrong", [1.5, 256, -0.1, float("nan"), float("inf")])
def test_other_pixels_are_refused(wrong, tmp_path):
    with pytest.raises(DataError, match=r"all\.json: .*writer w has pixels from"):
        leaf(tmp_path, [wrong] + [0.0] * 783).load()


@pytest.mark.parametrize("wrong", [1.7, "3", True, None, float("nan")])
def test_a_label_that_is_not_a_whole_number_is_refused(wrong, tmp_path):
    with pytest.raises(DataError, match=r"all\.json: not a file of LEAF's FEMNIST: "):
        leaf(tmp_path, [0.0] * 784, label=wrong).load()
