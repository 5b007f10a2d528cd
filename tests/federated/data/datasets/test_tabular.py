"""Tables of numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fedmr_merge.errors import DataError
from fedmr_merge.federated.catalogue import DATA_SETS, PARTITIONS
from fedmr_merge.federated.data.datasets.tabular import Tabular

TABLE = "age,height,sick,who\n10,1.5,no,a\n20,1.5,yes,b\n30,1.5,no,a\n"
TEST = "age,height,sick,who\n40,2.5,yes,a\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.csv").write_text(TABLE)
    (tmp_path / "test.csv").write_text(TEST)
    return tmp_path


def test_a_class_is_predicted_from_all_other_columns(folder):
    data_set = Tabular(path=str(folder), target="sick", client_column="who")
    assert data_set.task == "tabular-classification"
    data = data_set.load()
    assert data.feature_names == ("age", "height")
    assert data.class_names == ("no", "yes")
    assert data.targets("train").tolist() == [0, 1, 0]
    assert data.train_clients.tolist() == [0, 1, 0]
    std = np.std([10, 20, 30])
    # The deviation of a column that is the same everywhere is taken as 1.
    expected = torch.tensor([[-10 / std, 0], [0, 0], [10 / std, 0]], dtype=torch.float32)
    assert torch.equal(data.inputs("train", slice(None)), expected)
    assert data.inputs("test", slice(None)).tolist() == [[pytest.approx(20 / std), 1.0]]
    assert data.preprocess() == {"features": ["age", "height"], "mean": [20.0, 1.5], "std": [std, 1.0]}
    assert data.target_unit == 1.0


def test_a_number_is_predicted_from_the_columns_that_are_named(folder):
    data_set = Tabular(path=str(folder), target="age", predict="number", features=("height",))
    assert data_set.task == "regression"
    data = data_set.load()
    std = np.std([10, 20, 30])
    assert data.targets("train").tolist() == pytest.approx([-10 / std, 0, 10 / std])
    assert data.targets("test").tolist() == pytest.approx([20 / std])
    assert data.target_unit == std
    assert data.preprocess()["target"] == {"name": "age", "mean": 20.0, "std": std}
    assert data.class_names == ()


def test_numbers_as_they_are(folder):
    options = {"path": str(folder), "target": "age", "predict": "number", "features": ("height",)}
    measured, data = (Tabular(**options, normalisation=kind).load() for kind in ("measured", "none"))
    assert (measured.measured, data.measured) == (True, False)
    assert data.inputs("test", slice(None)).tolist() == [[2.5]]
    assert data.targets("train").tolist() == [10.0, 20.0, 30.0]
    assert data.target_unit == 1.0
    assert data.preprocess()["target"] == {"name": "age", "mean": 0.0, "std": 1.0}


def test_parquet_and_a_held_out_share(tmp_path):
    rows = [{"x": float(i), "y": i % 2} for i in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "all.parquet")
    data = Tabular(path=str(tmp_path / "all.parquet"), target="y", test_split=None, test_share=0.25).load()
    assert data.examples("train") == 30
    assert torch.bincount(data.targets("test")).tolist() == [5, 5]  # a quarter of each class


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "age", "predict": "number"}, "column 'sick', row 1: 'no' is not a number"),
        ({"target": "weight"}, "there is no column 'weight', there are age, height, sick, who"),
        ({"target": "sick", "features": ("age", "weight")}, "there is no column 'weight'"),
        ({"target": "sick"}, "column 'who', row 1: 'a' is not a number"),
        ({"target": "sick", "predict": "number", "features": ("age",)}, "column 'sick', row 1: 'no' is not a number"),
    ],
)
def test_columns_that_are_not_as_they_should_be(folder, options, message):
    with pytest.raises(DataError, match=message) as caught:
        Tabular(path=str(folder), **options).load()
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "sizes", "features"), [("breast-cancer", (456, 113), 30), ("diabetes", (354, 88), 10)]
)
def test_embedded_sets_are_whole_standardised_and_the_same_every_time(name, sizes, features):
    data, again = (DATA_SETS.find(name)().load() for _ in range(2))
    assert (data.examples("train"), data.examples("test")) == sizes
    rows = data.inputs("train", slice(None))
    assert rows.shape == (sizes[0], features)
    assert rows.mean(dim=0).abs().max() < 1e-5
    assert (rows.std(dim=0, correction=0) - 1).abs().max() < 1e-5
    assert torch.equal(rows, again.inputs("train", slice(None)))
    assert torch.equal(data.targets("test"), again.targets("test"))


@pytest.mark.parametrize("kind", ["dirichlet", "shards"])
def test_a_partition_by_class_is_refused_where_there_are_none(kind):
    with pytest.raises(DataError, match=f"partition {kind} deals examples by their class, and the targets") as caught:
        PARTITIONS.find(kind)(clients=3).split(DATA_SETS.find("diabetes")().load(), 0)
    assert "iid" in caught.value.hint


@pytest.mark.parametrize("kind", ["iid", "quantity"])
def test_other_partitions_need_no_classes(kind):
    found = PARTITIONS.find(kind)(clients=3).split(DATA_SETS.find("diabetes")().load(), 0)
    assert sum(found.sizes) == 354


def test_classes_are_dealt_by_their_mixture_whatever_the_examples_are():
    found = PARTITIONS.find("dirichlet")(clients=5, alpha=0.1).split(DATA_SETS.find("breast-cancer")().load(), 0)
    assert sum(found.sizes) == 456
