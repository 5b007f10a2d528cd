from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets.cifar10 import Cifar10
from fedmr_merge.federated.data.datasets.cifar100 import Cifar100


def record(labels, seed):
    """Return a record and the image in it, [3, 32, 32]."""
    image = np.random.default_rng(seed).integers(0, 256, size=(3, 32, 32), dtype=np.uint8)
    return bytes(labels) + image.tobytes(), image


def write_cifar10_binary(folder):
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(f"kind{label}" for label in range(10)) + "\n\n")
    images = []
    for batch in range(1, 6):
        records = [record([batch + place], seed=10 * batch + place) for place in range(2)]
        (folder / f"data_batch_{batch}.bin").write_bytes(b"".join(content for content, _ in records))
        images += [image for _, image in records]
    (folder / "test_batch.bin").write_bytes(record([7], seed=99)[0])
    return np.stack(images)


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_cifar10_is_read_from_the_authors_binary_version(tmp_path, below):
    images = write_cifar10_binary(tmp_path / "data" / "cifar-10-batches-bin")
    data = Cifar10(path=str(tmp_path / "data" / below)).load()
    assert torch.equal(data.train_images, torch.from_numpy(images))
    assert data.train_labels.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert data.test_labels.tolist() == [7]
    assert data.class_names == tuple(f"kind{label}" for label in range(10))


@pytest.mark.parametrize(("labels", "expected", "classes"), [("fine", [93, 4], 100), ("coarse", [18, 0], 20)])
def test_cifar100_is_read_from_the_authors_binary_version(tmp_path, labels, expected, classes):
    for kind, count in (("fine", 100), ("coarse", 20)):
        (tmp_path / f"{kind}_label_names.txt").write_text("\n".join(f"{kind}{label}" for label in range(count)))
    (tmp_path / "train.bin").write_bytes(record([18, 93], 0)[0] + record([0, 4], 1)[0])
    (tmp_path / "test.bin").write_bytes(record([1, 5], 2)[0])
    data = Cifar100(path=str(tmp_path), labels=labels).load()
    assert data.train_labels.tolist() == expected
    assert data.num_classes == classes
    assert torch.equal(data.train_images[1], torch.from_numpy(record([0, 4], 1)[1]))


def test_nothing_there(tmp_path):
    with pytest.raises(
        DataError, match="there is no cifar100, neither as parquet nor as cifar-100-binary or"
    ) as caught:
        Cifar100(path=str(tmp_path)).load()
    assert "cifar-100-binary.tar.gz" in caught.value.hint


def test_a_missing_or_cut_file_is_named(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar10_binary(folder)
    with (folder / "data_batch_3.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"data_batch_3\.bin: 6147 bytes are not a whole number of records"):
        Cifar10(path=str(tmp_path)).load()
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_2\.bin: No such file"):
        Cifar10(path=str(tmp_path)).load()
