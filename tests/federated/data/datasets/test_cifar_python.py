from __future__ import annotations

import io
import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets._cifar_python import _read_batches
from fedmr_merge.federated.data.datasets.cifar10 import Cifar10
from fedmr_merge.federated.data.datasets.cifar100 import Cifar100


class Python2(pickle._Pickler):
    """Writes texts and bytes alike as Python 2's texts, as in the authors' files."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 - as its base has it

    def save_text(self, text):
        text = text.encode("latin1") if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(text)) + text)

    dispatch[bytes] = dispatch[str] = save_text


def write(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    Python2(stream, protocol=2).dump(value)
    file.write_bytes(stream.getvalue())


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, size=(count, 3072), dtype=np.uint8)


def write_cifar10(folder):
    write(folder / "batches.meta", {"label_names": [f"kind{label}" for label in range(10)], "num_vis": 3072})
    for batch in range(1, 6):
        content = {"data": images(2, batch), "labels": [batch, batch + 1], "batch_label": f"{batch}"}
        write(folder / f"data_batch_{batch}", content)
    write(folder / "test_batch", {"data": images(1, 9), "labels": [7]})


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_cifar10_is_read_as_torchvision_keeps_it(tmp_path, below):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    data = Cifar10(path=str(tmp_path / below)).load()
    expected = np.concatenate([images(2, batch) for batch in range(1, 6)]).reshape(-1, 3, 32, 32)
    assert torch.equal(data.train_images, torch.from_numpy(expected))
    assert data.train_labels.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert data.test_labels.tolist() == [7]
    assert data.class_names == tuple(f"kind{label}" for label in range(10))


@pytest.mark.parametrize(("labels", "expected", "classes"), [("fine", [93, 4], 100), ("coarse", [18, 0], 20)])
def test_cifar100_is_read_as_torchvision_keeps_it(tmp_path, labels, expected, classes):
    folder = tmp_path / "cifar-100-python"
    names = {f"{kind}_label_names": [f"{kind}{n}" for n in range(c)] for kind, c in (("fine", 100), ("coarse", 20))}
    write(folder / "meta", names)
    write(folder / "train", {"data": images(2, 0), "fine_labels": [93, 4], "coarse_labels": [18, 0]})
    write(folder / "test", {"data": images(1, 1), "fine_labels": [5], "coarse_labels": [1]})
    data = Cifar100(path=str(tmp_path), labels=labels).load()
    assert data.train_labels.tolist() == expected
    assert data.class_names == tuple(f"{labels}{n}" for n in range(classes))


class Runs:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize("place", ["batches.meta", "data_batch_2"])
def test_nothing_in_a_pickle_is_run(tmp_path, place, capsys):
    write_cifar10(tmp_path)
    content = {"labels": [Runs()], "label_names": [Runs()]}
    (tmp_path / place).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=rf"{place}: cannot be read: it asks for __builtin__\.print"):
        Cifar10(path=str(tmp_path)).load()
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"data": images(2, 0), "labels": [1]},
        {"data": [1], "labels": [1]},
        {"data": images(1, 0), "labels": ["a"]},
    ],
)
def test_other_content_is_named(tmp_path, content):
    write_cifar10(tmp_path)
    write(tmp_path / "data_batch_4", content)
    with pytest.raises(DataError, match="data_batch_4: is not a batch of images"):
        Cifar10(path=str(tmp_path)).load()


def test_a_missing_or_cut_file_is_named(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3").write_bytes((tmp_path / "data_batch_3").read_bytes()[:-9])
    with pytest.raises(DataError, match="data_batch_3: cannot be read"):
        Cifar10(path=str(tmp_path)).load()
    (tmp_path / "data_batch_2").unlink()
    with pytest.raises(DataError, match="data_batch_2: No such file"):
        Cifar10(path=str(tmp_path)).load()


FORGED = {
    # numpy.dtype with a state of its own: numpy would take an address from it.
    "a dtype": b"\x80\x02cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x04U\x01|NNNJ\xff\xff\xff\xffK\x00K?N}tb.",
    "a far place": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a long string": b"\x80\x02T\xff\xff\xff\x7fabc.",
    "a class of its own": b"\x80\x02cos\nsystem\nU\x02ls\x85R.",
    "an instruction of newer files": pickle.dumps({"data": [1]}, protocol=4),
    "an object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "an array by its class": b"\x80\x02cnumpy\nndarray\nM\xff\xff\x85R.",
    "an extension": b"\x80\x02\x82\x01.",
    "nothing": b"",
    "no end": b"\x80\x02}",
}


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED)
def test_a_forged_file_is_refused_and_nothing_is_built(tmp_path, content):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match="data_batch_1"):
        Cifar10(path=str(tmp_path)).load()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_file_is_read_or_refused(data):
    """Whatever bytes are changed: what is read has the form of CIFAR, or the file is named."""
    stream = io.BytesIO()
    Python2(stream, protocol=2).dump({"data": images(2, 0), "labels": [1, 2], "batch_label": "x"})
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 200) | st.integers(-120, -1))
        content[place] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batch"
        path.write_bytes(content)
        try:
            part = _read_batches([path], "labels")
        except DataError:
            return
        assert part.images.shape[1:] == (3, 32, 32)
        assert len(part.labels) == len(part.images)


def test_what_is_read_is_read_only_memory_of_the_file_and_no_more(tmp_path):
    """An array that says it has more bytes than the file is refused before memory is taken for it."""
    write_cifar10(tmp_path)
    whole = (tmp_path / "data_batch_1").read_bytes()
    # The shape (2, 3072) as Python 2 pickles it.
    assert whole.count(b"K\x02M\x00\x0c") == 1
    (tmp_path / "data_batch_1").write_bytes(whole.replace(b"K\x02M\x00\x0c", b"J\xff\xff\xff\x7fM\x00\x0c"))
    with pytest.raises(DataError, match="data_batch_1: is not a batch of images"):
        Cifar10(path=str(tmp_path)).load()
