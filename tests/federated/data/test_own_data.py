"""Data in the forms in which people have them; what does not fit is refused in one line that says where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from fedmr_merge import as_data
from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets._own import given_data, to_data
from fedmr_merge.federated.data.datasets.digits import Digits
from fedmr_merge.federated.data.features import FeatureData
from fedmr_merge.federated.data.images import ImageData
from fedmr_merge.federated.data.own import OwnImages, OwnTensors, content_hash, task_of

LABELS = torch.tensor([0, 2, 1, 0, 2, 1])


def parts(inputs: Any, targets: Any, at: int = 4) -> tuple[Any, Any]:
    return (inputs[:at], targets[:at]), (inputs[at:], targets[at:])


@pytest.mark.parametrize(
    ("inputs", "targets", "cls", "kind", "shape", "task"),
    [
        (torch.zeros(6, 3, 8, 8, dtype=torch.uint8), LABELS, ImageData, "images", (3, 8, 8), "image-classification"),
        (torch.zeros(6, 8, 9, dtype=torch.uint8), LABELS, ImageData, "images", (1, 8, 9), "image-classification"),
        (torch.zeros(6, 3, 8, 8), LABELS, OwnImages, "images", (3, 8, 8), "image-classification"),
        (torch.zeros(6, 5), LABELS, FeatureData, "features", (5,), "tabular-classification"),
        (np.zeros((6, 5)), np.arange(6) % 2 == 0, FeatureData, "features", (5,), "tabular-classification"),
        (torch.zeros(6, 5), torch.rand(6), FeatureData, "features", (5,), "regression"),
        (torch.zeros(6, 3, 8, 8), torch.rand(6), OwnTensors, "tensors", (3, 8, 8), "regression"),
        (torch.zeros(6, 9, dtype=torch.uint8), torch.rand(6), OwnTensors, "tensors", (9,), "regression"),
        (torch.zeros(6, 7, dtype=torch.int32), LABELS, OwnTensors, "tensors", (7,), "tabular-classification"),
        (torch.zeros(6, 2, 50), LABELS, OwnTensors, "tensors", (2, 50), "tabular-classification"),
    ],
)
def test_what_tensors_are_taken_for(inputs, targets, cls, kind, shape, task):
    data = as_data(*parts(inputs, targets))
    assert (type(data), data.kind, data.example_shape, task_of(data)) == (cls, kind, shape, task)
    assert data.measured == (cls is ImageData)
    assert (data.examples("train"), data.examples("test")) == (4, 2)
    assert data.inputs("train", slice(0, 2)).shape[1:] == shape


def test_numbers_are_given_to_the_model_as_they_are():
    inputs, numbers = torch.randn(6, 5, dtype=torch.float64), torch.randn(6)
    data = as_data(*parts(inputs, numbers))
    assert torch.equal(data.inputs("test", slice(0, 9)), inputs[4:].float())
    assert torch.equal(data.targets("train"), numbers[:4])
    tokens = torch.arange(18, dtype=torch.int16).view(6, 3)
    assert torch.equal(as_data(*parts(tokens, LABELS)).inputs("train", slice(0, 4)), tokens[:4].long())


def test_uint8_images_are_normalised_by_the_training_part():
    images = torch.randint(0, 256, (6, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    normalised = as_data(*parts(images, LABELS)).inputs("train", slice(0, 4))
    for channel in range(2):
        assert float(normalised[:, channel].mean()) == pytest.approx(0, abs=1e-3)
        assert float(normalised[:, channel].std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_tensors_by_name():
    inputs = {"input_ids": torch.arange(18).view(6, 3), "attention_mask": torch.ones(6, 3, dtype=torch.bool)}
    train, test = ({name: tensor[part] for name, tensor in inputs.items()} for part in (slice(4), slice(4, 6)))
    data = as_data((train, LABELS[:4]), (test, LABELS[4:]))
    assert data.example_shape == {"input_ids": (3,), "attention_mask": (3,)}
    found = data.inputs("test", torch.tensor([1]))
    assert found["input_ids"].tolist() == [[15, 16, 17]]
    assert found["attention_mask"].dtype == torch.bool


class Named(torch.utils.data.Dataset):
    classes = ("cat", "dog", "owl")

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        return torch.full((2,), float(number)), number % 3


def test_a_torch_data_set_with_names_of_classes():
    data = as_data(Named(6), Named(3))
    assert data.class_names == ("cat", "dog", "owl")
    assert data.inputs("train", torch.tensor([5])).tolist() == [[5.0, 5.0]]
    assert data.targets("train").tolist() == [0, 1, 2, 0, 1, 2]


class Animals(Named):
    """Names its classes as a folder for each would be, of which some parts have others."""

    def __init__(self, classes, labels):
        super().__init__(len(labels))
        self.classes, self.labels = classes, labels

    def __getitem__(self, number):
        return torch.zeros(2), self.labels[number]


def test_classes_of_one_name_are_one_class_in_both_parts():
    train = Animals(["cat", "dog", "owl"], [0, 1, 2])
    data = as_data(train, Animals(["cat", "owl", "zebra"], [1, 0, 1]))
    assert data.class_names == ("cat", "dog", "owl")
    assert data.targets("test").tolist() == [2, 0, 2]
    renamed = as_data(train, Animals(["cat", "owl"], [1, 0]), class_names=["Katze", "Hund", "Eule"])
    assert [renamed.class_names[label] for label in renamed.targets("test")] == ["Eule", "Katze"]
    with pytest.raises(DataError, match="the test part has the class 'zebra', which the training part does not have"):
        as_data(train, Animals(["cat", "owl", "zebra"], [0, 2]))
    for label in (-1, 2):
        with pytest.raises(DataError, match=f"the test part has the class {label}, and there are 2 classes"):
            as_data(train, Animals(["cat", "owl"], [0, label]))


def test_a_torch_data_set_of_pillow_images_and_mappings():
    from PIL import Image

    class Pictures(Named):
        def __getitem__(self, number):
            return {"img": Image.new("RGB", (5, 4), (number, 0, 255)), "target": number % 3, "who": number // 2}

    data = as_data(Pictures(6), Pictures(3), client_column="who")
    assert (type(data), data.example_shape) == (ImageData, (3, 4, 5))
    assert data.train_images[5, :, 0, 0].tolist() == [5, 0, 255]
    assert data.train_clients.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(DataError, match="an example of the training part has no 'label', only img, target, who"):
        as_data(Pictures(6), Pictures(3), target_column="label")


def test_hugging_face_data_sets():
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["a", "b", "c"]),
            "writer": datasets.Value("string"),
        }
    )
    rows = {"picture": [Image.new("L", (4, 3), 9 * number) for number in range(6)], "kind": [0, 1, 2, 0, 1, 2]}
    table = datasets.Dataset.from_dict({**rows, "writer": ["x", "y", "x", "z", "y", "z"]}, features)
    data = as_data(table, table.select([1, 2]), client_column="writer")
    assert (type(data), data.example_shape, data.class_names) == (ImageData, (1, 3, 4), ("a", "b", "c"))
    assert data.train_images[:, 0, 0, 0].tolist() == [0, 9, 18, 27, 36, 45]
    assert data.train_clients.tolist() == [0, 1, 0, 2, 1, 2]
    pair = datasets.DatasetDict({"train": table, "test": table.select([0])})
    assert to_data(pair, "data").examples("test") == 1

    numbers = datasets.Dataset.from_dict({"row": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1], "other": [5, 6]})
    with pytest.raises(
        DataError, match="no column is known for the inputs of the training part; the columns are row"
    ) as e:
        as_data(numbers, numbers)
    assert e.value.hint == "name it: as_data(…, input_column=…)"
    assert as_data(numbers, numbers, input_column="row").inputs("train", slice(0, 2)).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(DataError, match="the training part has no column 'rows', there are row, label, other"):
        as_data(numbers, numbers, input_column="rows")
    with pytest.raises(DataError, match="these columns may be the targets of the training part: label, y"):
        as_data(numbers.add_column("y", [0, 1]), numbers, input_column="row")


def test_classes_that_are_strings_are_numbered_in_sorted_order():
    data = as_data(*parts(torch.zeros(6, 2), np.array(["b", "a", "c", "a", "c", "b"])))
    assert data.class_names == ("a", "b", "c")
    assert data.targets("train").tolist() == [1, 0, 2, 0]
    other = as_data(*parts(torch.zeros(6, 2), ["b", "a", "c", "a", "c", "b"]), class_names=["c", "b", "a"])
    assert other.targets("test").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("abc", "class_names is one text, 'abc', and must be a list with a name for every class"),
        (["cat", "dog", "cat"], "class_names has 'cat' twice"),
    ],
)
def test_names_of_classes_that_are_no_list_of_different_names(names, message):
    with pytest.raises(DataError, match=f"^{message}$"):
        as_data(*parts(torch.zeros(6, 5), LABELS), class_names=names)


def test_clients_of_a_tuple():
    (x, y), test = parts(torch.zeros(6, 2), LABELS)
    assert as_data((x, y, ["ann", "bob", "ann", "cy"]), test).train_clients.tolist() == [0, 1, 0, 2]


def test_the_hash_is_that_of_the_content():
    x = torch.randn(6, 5)
    first = content_hash(as_data(*parts(x, LABELS)))
    assert content_hash(as_data(*parts(x.clone().numpy(), LABELS.tolist()))) == first
    changed = x.clone()
    changed[5, 4] += 1e-6
    for other in (
        as_data(*parts(changed, LABELS)),
        as_data(*parts(x, LABELS.flip(0))),
        as_data(*parts(x, LABELS), class_names=["a", "b", "c"]),
        as_data(*parts(x, LABELS, at=3)),
        as_data(*parts(x.view(6, 5, 1), LABELS)),
    ):
        assert content_hash(other) != first


def test_a_data_set_of_this_package_may_be_given():
    assert given_data(Digits()) == Digits()
    assert given_data(Digits().load()).name == "python:data"


class Endless(IterableDataset):
    def __iter__(self):
        return iter([(1, 2)])


class Uneven(Named):
    def __getitem__(self, number):
        return torch.zeros(2 + (number == 4)), 0


class Crashing(Named):
    def __getitem__(self, number):
        return {}["absent"]


X, Y = torch.zeros(6, 5), LABELS


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ((X, Y), (X[:, :4], Y), r"differ: float32 \[5\] in the training part, float32 \[4\] in the test part"),
        ((X, Y), (X.long(), Y), r"differ: float32 \[5\] in the training part, int64 \[5\] in the test part"),
        ((X, Y[:5]), (X, Y), "the training part has 6 inputs, 5 targets: there must be as many of each"),
        ((X, Y), (X[:0], Y[:0]), "the test part has no examples"),
        (Named(6), (torch.zeros(6, 2), Y + 1), "the test part has the class 3, and there are 3 classes"),
        ((X, Y), (X, Y / 2), "the targets are floating-point numbers in one part and classes in the other"),
        ((X, Y - 1), (X, Y), "the training part has the class -1"),
        ((X / 0, Y), (X, Y), "inputs of the training part: 30 numbers are not finite"),
        ((X, Y / 2), (X, torch.full((6,), float("nan"))), "the targets of the test part: 6 numbers are not finite"),
        ((X, X), (X, X), r"the targets of the training part have the shape \[6, 5\], and must be \[examples\]"),
        ((X, ["a"] * 6), (X, ["b"] * 6), "the test part has b, and the classes are a"),
        ((X, ["a"] * 6), (X, Y), "the targets are strings in one part and numbers in the other"),
        ((X, "abc"), (X, Y), "the training part has 6 inputs, 0 targets"),
        ((X, None), (X, Y), "the targets of the training part: cannot be made a tensor, of type"),
        ((X.to(torch.complex64), Y), (X.to(torch.complex64), Y), "complex numbers are not supported"),
        ((X,), (X, Y), "the training part is a tuple of 1 objects"),
        (Endless(), Endless(), "the training part is of type Endless, which holds no examples that can be counted"),
        (Uneven(6), Uneven(3), r"example 4 is float32 \[3\], example 0 is float32 \[2\]"),
        (
            Crashing(6),
            Crashing(3),
            r"example 0 of the training part cannot be had: KeyError: 'absent' \(test_own_data.py",
        ),
        (TensorDataset(X), TensorDataset(X), r"example 0 of the training part is of type tuple, not \(input, target\)"),
        ((torch.zeros(6, 8, 8, 3, dtype=torch.uint8), Y), None, r"uint8 inputs are images \[examples, channels"),
        ((torch.zeros(6, 9, dtype=torch.uint8), Y), None, r"these have the shape \[6, 9\]"),
        (
            (torch.zeros(6, 1, 8, 8, dtype=torch.uint8), Y / 2),
            None,
            r"of the shape \[6, 1, 8, 8\] are images, whose targets must be classes, and these are numbers to predict",
        ),
        ((object(), Y), (X, Y), "the inputs of the training part: cannot be made a tensor"),
        (None, (X, Y), "the training part is of type NoneType"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(train, test, message):
    with pytest.raises(DataError, match=message) as caught:
        as_data(train, train if test is None else test)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("found", [None, 7, (1, 2, 3), {"train": 1}])
def test_what_is_not_a_pair_is_refused(found):
    with pytest.raises(DataError, match=r"own:load gave an object of type \w+, not \(train, test\)"):
        to_data(found, "own:load")
