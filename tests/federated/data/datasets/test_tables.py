from __future__ import annotations

import io
import socket
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from data_layouts import encoded, pictures, write_cifar10, write_cifar100, write_parquet
from PIL import Image

from fedmr_merge.errors import DataError
from fedmr_merge.federated.catalogue import DATA_SETS
from fedmr_merge.federated.data.datasets._table import decode
from fedmr_merge.federated.data.datasets.cifar10 import Cifar10
from fedmr_merge.federated.data.datasets.cifar100 import Cifar100
from fedmr_merge.federated.data.datasets.parquet import Parquet


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def hub(**options):
    return DATA_SETS.find("hub:somebody/something")(**options)


def chw(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy() if images.ndim == 4 else images[:, None])


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_cifar10_is_read_from_parquet_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it would fail
    write_cifar10(tmp_path / "cifar10")
    before = files_below(tmp_path)
    data = Cifar10(path=str(tmp_path / "cifar10")).load()
    assert files_below(tmp_path) == before
    assert torch.equal(data.train_images, chw(pictures(60, seed=0, labels=np.arange(60) % 10)))
    assert torch.equal(data.test_images, chw(pictures(20, seed=1, labels=np.arange(20) % 10)))
    assert data.train_labels.tolist() == [label % 10 for label in range(60)]
    assert data.class_names[:2] == ("airplane", "automobile")
    assert data.train_images.dtype == torch.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert data.train_clients is None
    assert not data.augmentation.active


def test_cifar100_has_fine_and_coarse_labels(tmp_path):
    write_cifar100(tmp_path)
    fine, coarse = (Cifar100(path=str(tmp_path), labels=labels).load() for labels in ("fine", "coarse"))
    assert (fine.num_classes, coarse.num_classes) == (100, 20)
    assert torch.equal(fine.train_labels // 5, coarse.train_labels)
    assert coarse.class_names[19] == "coarse 19"
    assert torch.equal(fine.train_images, coarse.train_images)


def test_normalisation(tmp_path):
    write_cifar10(tmp_path)

    def load(kind):
        return Cifar10(path=str(tmp_path), normalisation=kind).load()

    measured = load("measured")
    values = measured.normalise(measured.train_images)
    assert values.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (values.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-3
    half = load("half")
    assert half.normalise(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 32, 32))[
        :, 0, 0, 0
    ].tolist() == pytest.approx([-1.0, 1.0])
    assert (measured.measured, half.measured, load("imagenet").measured) == (True, False, False)
    assert load("cifar10").mean == (0.4914, 0.4822, 0.4465)
    assert load("imagenet").std == (0.229, 0.224, 0.225)
    # What the code of FedMR's authors has for CIFAR-100.
    assert load("cifar10-per-image").std == (0.2023, 0.1994, 0.2010)


def test_augmentation_is_an_option(tmp_path):
    write_cifar10(tmp_path)
    augmentation = Cifar10(path=str(tmp_path), flip=True, crop=4).load().augmentation
    assert augmentation.flip
    assert augmentation.crop == 4


def test_any_table_whose_columns_are_named(tmp_path):
    labels = ["cat", "dog", "ant"] * 4
    writers = ["x", "z", "y", "x"] * 3
    images = pictures(12, (9, 7))
    write_parquet(tmp_path / "train.parquet", {"picture": images, "kind": labels, "who": writers})
    write_parquet(tmp_path / "valid.parquet", {"picture": images[:5], "kind": labels[:5]})
    options = {
        "image_column": "picture",
        "label_column": "kind",
        "client_column": "who",
        "test_split": "valid",
        "path": str(tmp_path),
    }
    for data_set in (hub(**options), Parquet(**options)):
        data = data_set.load()
        assert data.class_names == ("ant", "cat", "dog")
        assert data.train_labels.tolist() == [1, 2, 0] * 4
        assert data.train_clients.tolist() == [0, 2, 1, 0] * 3
        assert torch.equal(data.train_images, chw(images))
        assert data.image_shape == (1, 9, 7)
        assert data.test_labels.tolist() == [1, 2, 0, 1, 2]
    assert hub(**options).name == "hub:somebody/something"


@pytest.mark.parametrize("client_column", [None, "who"])
def test_a_share_is_held_out_where_there_is_no_test_split(tmp_path, client_column):
    labels, who = np.arange(80) % 4, np.arange(80) // 20
    write_parquet(tmp_path / "train.parquet", {"image": pictures(80, (6, 6, 3)), "label": labels, "who": who})
    data = Parquet(path=str(tmp_path), test_split=None, test_share=0.25, client_column=client_column).load()
    again = Parquet(path=str(tmp_path), test_split=None, test_share=0.25, client_column=client_column).load()
    assert torch.equal(data.test_images, again.test_images)
    assert len(data.test_labels) == 20
    assert len(data.train_labels) == 60
    if client_column is None:
        assert torch.bincount(data.test_labels).tolist() == [5] * 4
    else:
        assert torch.bincount(data.train_clients).tolist() == [15] * 4
    everything = torch.cat([data.train_images, data.test_images]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 80


def test_images_of_unlike_sizes_are_resized_when_asked(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [encoded(pictures(1, shape)[0], kind) for shape, kind in (((8, 8, 3), "PNG"), ((6, 9, 3), "JPEG"))]
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": files, "label": [0, 1]}), tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match="images differ in size, 8x8 and 6x9") as caught:
        Parquet(path=str(tmp_path)).load()
    assert caught.value.hint == "set data.size"
    data = Parquet(path=str(tmp_path), size=8).load()
    assert data.train_images.shape == (2, 3, 8, 8)
    assert torch.equal(data.train_images[0], chw(pictures(1, (8, 8, 3)))[0])


class TestFaults:
    """One line each, saying what to do."""

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(DataError, match="there is no such folder"):
            Parquet(path=str(tmp_path / "nothing")).load()

    def test_no_such_split(self, tmp_path):
        write_parquet(tmp_path / "training.parquet", {"image": pictures(2), "label": [0, 1]})
        with pytest.raises(DataError, match="no parquet file of the split 'train'"):
            Parquet(path=str(tmp_path)).load()

    def test_a_split_in_two_places(self, tmp_path):
        for folder in ("one", "two"):
            write_parquet(tmp_path / folder / "train.parquet", {"image": pictures(2), "label": [0, 1]})
        with pytest.raises(DataError, match="'train' is in several folders: one, two"):
            hub(path=str(tmp_path)).load()
        with pytest.raises(DataError, match="no parquet file of the split 'test'"):
            hub(path=str(tmp_path), config="one").load()

    def test_no_such_column(self, tmp_path):
        write_parquet(tmp_path / "train.parquet", {"img": pictures(2), "label": [0, 1]})
        with pytest.raises(DataError, match="there is no column 'image', there are img, label"):
            Parquet(path=str(tmp_path)).load()

    def test_a_column_without_images(self, tmp_path):
        write_parquet(tmp_path / "train.parquet", {"image": [1, 2], "label": [0, 1]})
        with pytest.raises(DataError, match=r"/train.parquet: column 'image' holds no images"):
            Parquet(path=str(tmp_path)).load()

    def test_an_image_that_is_none(self, tmp_path):
        write_parquet(tmp_path / "train.parquet", {"image": [b"\x89PNG", b""], "label": [0, 1]})
        with pytest.raises(DataError, match=r"/train.parquet: column 'image', row 1: not an image"):
            Parquet(path=str(tmp_path)).load()

    def test_of_several_files_the_one_with_the_image_is_named(self, tmp_path):
        whole = encoded(pictures(1)[0])
        for number, image in enumerate((whole, whole, b"")):
            name = f"train-0000{number}-of-00003.parquet"
            write_parquet(tmp_path / name, {"image": [whole, whole, image], "label": [0, 1, 1]})
        with pytest.raises(DataError, match=r"/train-00002-of-00003.parquet: column 'image', row 3: not an image"):
            Parquet(path=str(tmp_path)).load()
        write_parquet(tmp_path / "train-00000-of-00003.parquet", {"image": [1, 2], "label": [0, 1]})
        (tmp_path / "train-00001-of-00003.parquet").write_text("text")
        with pytest.raises(DataError, match=r"/train-00001-of-00003.parquet: cannot be read as parquet"):
            Parquet(path=str(tmp_path)).load()

    def test_an_image_with_more_than_a_byte_a_pixel(self, tmp_path):
        deep = encoded(np.full((4, 4), 300, dtype=np.uint16))
        write_parquet(tmp_path / "train.parquet", {"image": [deep], "label": [0]})
        with pytest.raises(
            DataError, match=r"/train.parquet: column 'image', row 1: more than 8 bits a pixel are not read"
        ):
            Parquet(path=str(tmp_path)).load()

    def test_an_example_without_a_label(self, tmp_path):
        for split, labels in (("train", [0, 1]), ("test", [-1, -1])):
            write_parquet(tmp_path / f"{split}.parquet", {"image": pictures(2), "label": labels})
        with pytest.raises(DataError, match="the test part has the label -1"):
            Parquet(path=str(tmp_path)).load()

    def test_an_empty_label(self, tmp_path):
        write_parquet(tmp_path / "train.parquet", {"image": pictures(2), "label": [0, None]})
        with pytest.raises(DataError, match=r"/train.parquet: column 'label' has 1 empty entries"):
            Parquet(path=str(tmp_path)).load()

    def test_a_class_that_was_not_trained_on(self, tmp_path):
        for split, labels in (("train", ["a", "b"]), ("test", ["a", "c"])):
            write_parquet(tmp_path / f"{split}.parquet", {"image": pictures(2), "label": labels})
        with pytest.raises(
            DataError, match=r"/test.parquet: column 'label' has the class 'c', which the training part does not have"
        ):
            Parquet(path=str(tmp_path)).load()

    def test_an_example_without_a_label_where_a_share_is_held_out(self, tmp_path):
        columns = {"image": pictures(4), "label": [0, 1, -1, 1]}
        write_parquet(tmp_path / "train.parquet", columns, {"label": ("a", "b")})
        with pytest.raises(DataError, match="the training part has the label -1"):
            Parquet(path=str(tmp_path), test_split=None, test_share=0.5).load()

    @pytest.mark.parametrize("options", [{"test_split": None}, {"test_share": 0.1}])
    def test_two_ways_to_hold_out(self, tmp_path, options):
        with pytest.raises(DataError, match="either test_split or test_share"):
            Parquet(path=str(tmp_path), **options).load()

    def test_grey_images_with_statistics_of_colour(self, tmp_path):
        for split in ("train", "test"):
            write_parquet(tmp_path / f"{split}.parquet", {"image": pictures(2, (8, 8)), "label": [0, 1]})
        with pytest.raises(DataError, match="normalisation imagenet is for colour images"):
            Parquet(path=str(tmp_path), normalisation="imagenet").load()

    def test_what_is_not_parquet(self, tmp_path):
        (tmp_path / "train.parquet").write_text("text")
        with pytest.raises(DataError, match=r"/train.parquet: cannot be read as parquet"):
            Parquet(path=str(tmp_path)).load()


class TestHub:
    """With the library `datasets` in place of the Hub."""

    @pytest.fixture(autouse=True)
    def _no_network(self, monkeypatch):
        monkeypatch.setattr("fedmr_merge.federated.data.datasets._table._hub_answers", lambda: False)

    def test_it_is_read_from_the_cache_without_a_network(self, tmp_path, monkeypatch):
        import datasets

        write_cifar10(tmp_path)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        files = {split: str(tmp_path / "plain_text" / f"{split}-*.parquet") for split in ("train", "test")}
        builder = datasets.load_dataset_builder("parquet", data_files=files)
        builder.download_and_prepare()
        # What was made of local files lies where what was downloaded would.
        made = tmp_path / "cache" / "somebody___something" / "default" / "0.0.0" / "abc"
        made.parent.mkdir(parents=True)
        Path(builder.cache_dir).rename(made)
        for file in made.glob("parquet-*.arrow"):
            file.rename(made / file.name.replace("parquet", "something"))
        data = hub(image_column="img").load()
        local = Cifar10(path=str(tmp_path)).load()
        assert torch.equal(data.train_images, local.train_images)
        assert data.class_names == local.class_names
        assert not datasets.config.HF_HUB_OFFLINE  # what was set for the moment is not left behind

    def test_its_data_set_is_that_of_its_files(self, tmp_path, monkeypatch):
        import datasets

        write_cifar10(tmp_path)
        asked = []

        def load_dataset(repo, config, *, split):
            asked.append((repo, config, split))
            file = tmp_path / "plain_text" / f"{split}-00000-of-00001.parquet"
            features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
            table = datasets.table.InMemoryTable.from_pydict(
                __import__("pyarrow.parquet").parquet.read_table(file).to_pydict()
            )
            return datasets.Dataset(table).cast(features)

        names = list(Cifar10(path=str(tmp_path)).load().class_names)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        local, remote = Cifar10(path=str(tmp_path)).load(), Cifar10().load()
        assert asked == [("uoft-cs/cifar10", None, "train"), ("uoft-cs/cifar10", None, "test")]
        assert torch.equal(local.train_images, remote.train_images)
        assert torch.equal(local.test_labels, remote.test_labels)
        assert local.class_names == remote.class_names

    def test_that_cannot_be_reached_is_told_with_what_to_do(self, monkeypatch):
        import datasets

        def load_dataset(repo, config, *, split):
            raise ConnectionError(f"Couldn't reach '{repo}' on the Hub\nsecond line")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(DataError, match=r"Couldn't reach 'somebody/something' on the Hub$") as caught:
            hub().load()
        assert "hf download somebody/something --repo-type dataset" in caught.value.hint

    def test_without_the_library(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(DataError, match="needs the library `datasets`") as caught:
            hub().load()
        assert caught.value.hint == "pip install 'fedmr-merge[data]'"


def test_labels_with_gaps_are_numbered_anew_and_keep_their_names(tmp_path):
    for split, labels in (("train", [5, 1, 9, 1]), ("test", [9, 5, 5, 1])):
        write_parquet(tmp_path / f"{split}.parquet", {"image": pictures(4), "label": labels})
    data = Parquet(path=str(tmp_path)).load()
    assert data.class_names == ("1", "5", "9")
    assert data.train_labels.tolist() == [1, 0, 2, 0]
    assert data.test_labels.tolist() == [2, 1, 1, 0]
    assert data.notes == ("the labels 1, 5, 9 are not 0 to 2: they are numbered anew, and keep their names",)


def test_classes_of_one_name_are_one_class_in_both_splits(tmp_path):
    def write(split, labels, names):
        columns = {"image": pictures(len(labels)), "label": labels}
        write_parquet(tmp_path / f"{split}.parquet", columns, {"label": names} if names else None)

    write("train", [0, 1, 2], ("cat", "dog", "owl"))
    write("test", [0, 1], ("owl", "cat"))
    data = Parquet(path=str(tmp_path)).load()
    assert (data.class_names, data.test_labels.tolist()) == (("cat", "dog", "owl"), [2, 0])
    write("train", ["dog", "cat", "owl"], None)
    assert Parquet(path=str(tmp_path)).load().test_labels.tolist() == [2, 0]
    # Numbers without names stay numbers.
    write("train", [0, 1, 2], None)
    assert Parquet(path=str(tmp_path)).load().test_labels.tolist() == [0, 1]
    write("train", [0, 1, 2], ("cat", "dog", "fox"))
    with pytest.raises(DataError, match=r"/test.parquet: column 'label' has the class 'owl', which the training part"):
        Parquet(path=str(tmp_path)).load()


def test_a_huge_label_takes_no_memory_and_whole_labels_have_no_note(tmp_path):
    write_parquet(tmp_path / "train.parquet", {"image": pictures(3), "label": [0, 7, 10**15]})
    write_parquet(tmp_path / "test.parquet", {"image": pictures(3), "label": [0, 7, 7]})
    assert Parquet(path=str(tmp_path)).load().class_names == ("0", "7", str(10**15))
    write_parquet(tmp_path / "train.parquet", {"image": pictures(3), "label": [2, 0, 1]})
    write_parquet(tmp_path / "test.parquet", {"image": pictures(3), "label": [0, 1, 2]})
    assert Parquet(path=str(tmp_path)).load().notes == ()
    write_parquet(tmp_path / "test.parquet", {"image": pictures(3), "label": [0, 1, 3]})
    with pytest.raises(DataError, match="has the class '3', which the training part does not have"):
        Parquet(path=str(tmp_path)).load()


@pytest.mark.parametrize("grey_row", [0, 2])
def test_a_set_with_one_colour_image_is_in_colour(grey_row, tmp_path):
    colour = [encoded(picture) for picture in pictures(4)]
    colour[grey_row] = encoded(pictures(4)[grey_row][..., 0])
    images = [{"bytes": file, "path": None} for file in colour]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", {"image": images, "label": [0, 1, 0, 1]})
    data = Parquet(path=str(tmp_path)).load()
    assert data.image_shape[0] == 3
    assert [note for note in data.notes if "grey" in note] == (
        ["the first image is grey and others have colour: all are read in colour"] if grey_row == 0 else []
    )
    assert torch.equal(data.train_images[3], chw(pictures(4))[3])
    assert torch.equal(data.train_images[grey_row], chw(pictures(4))[grey_row][:1].expand(3, -1, -1))


def test_many_small_clients_give_their_share_of_the_test_part(tmp_path):
    """Of 240 examples of 100 clients a tenth is 24, though no client has a whole example to give."""
    clients = sorted(f"client{number % 100}" for number in range(240))
    content = {"image": pictures(240), "label": [number % 2 for number in range(240)], "who": clients}
    write_parquet(tmp_path / "train.parquet", content)
    data = Parquet(path=str(tmp_path), client_column="who", test_split=None, test_share=0.1).load()
    assert len(data.test_labels) == 24
    assert len(data.train_labels) == 216
    assert torch.bincount(data.train_clients).min() >= 1


@pytest.mark.parametrize("kind", ["AVIF", "DDS", "PNG", "JPEG", "WEBP", "GIF", "TIFF", "ICO"])
def test_a_damaged_image_is_named_whatever_its_kind(kind):
    stream = io.BytesIO()
    try:
        Image.fromarray(pictures(1)[0]).resize((32, 32)).save(stream, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    whole, rng, refused = stream.getvalue(), np.random.default_rng(0), 0
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), size=8):
            content[place] = rng.integers(0, 256)
        table = pa.table({"image": [bytes(content[: rng.integers(1, len(content) + 1)])]})
        try:
            decode(table, "image")
        except DataError as error:
            refused += "row 1" in str(error)
    assert refused > 20  # the others were not damaged in a way that matters; nothing else was raised


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    stream = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(stream, "PNG")
    with pytest.raises(DataError, match="row 1: an image of 13000x13000 pixels is too large"):
        decode(pa.table({"image": [stream.getvalue()]}), "image")
