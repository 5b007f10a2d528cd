"""Texts from files: classes, next tokens, and how they become sequences."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_layouts import write_parquet
from hypothesis import given
from hypothesis import strategies as st

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets._packing import cut, packed
from fedmr_merge.federated.data.datasets.text import Text
from fedmr_merge.federated.data.partitions.natural import Natural
from fedmr_merge.federated.data.tokenizers import Bytes
from fedmr_merge.federated.data.tokens import IGNORED

ROWS = [("ab", "pos", "x"), ("c", "neg", "y"), ("déf", "neg", "x"), ("", "pos", "y")]
TEST = [("c", "neg", "x"), ("ab", "pos", "x")]
END, PAD = Bytes.end, Bytes.padding


def write(folder, suffix):
    for split, rows in (("train", ROWS), ("test", TEST)):
        columns = [dict(zip(("text", "label", "who"), row, strict=True)) for row in rows]
        file = folder / f"{split}{suffix}"
        if suffix == ".csv":
            file.write_text("text,label,who\n" + "".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
        elif suffix == ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in columns), encoding="utf-8")
        else:
            pq.write_table(pa.Table.from_pylist(columns), file)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_texts_with_labels_from_every_format(tmp_path, suffix):
    write(tmp_path, suffix)
    data_set = Text(path=str(tmp_path), label_column="label", client_column="who", length=3)
    assert data_set.task == "text-classification"
    data = data_set.load()
    assert data.class_names == ("neg", "pos")
    assert data.targets("train").tolist() == [1, 0, 0, 1]
    assert data.targets("test").tolist() == [0, 1]
    found = data.inputs("train", slice(None))
    # é is two bytes, and an empty text is the token for its end.
    assert found["input_ids"].tolist() == [[97, 98, PAD], [99, PAD, PAD], [100, 0xC3, 0xA9], [END, PAD, PAD]]
    assert found["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]]
    assert data.train_clients.tolist() == [0, 1, 0, 1]
    assert data.notes == ("1 of 4 training texts have more than 3 tokens and are cut",)
    assert data.example_shape == (3, 258)
    assert data.preprocess() == {"tokenizer": "bytes", "length": 3}


def test_so_many_rows_of_each_part_are_drawn_once_and_stay_in_their_order(tmp_path):
    for split, count in (("train", 40), ("test", 20)):
        rows = "".join(f"{split} {row},{row % 2}\n" for row in range(count))
        (tmp_path / f"{split}.csv").write_text("text,label\n" + rows, encoding="utf-8")
    named = {"path": str(tmp_path), "label_column": "label", "length": 8}

    def texts(**options):
        data = Text(**named, **options).load()
        return [
            [bytes(row[row < 256].tolist()).decode() for row in data.inputs(part, slice(None))["input_ids"]]
            for part in ("train", "test")
        ]

    whole = texts()
    train, test = texts(max_train_rows=10, max_test_rows=5)
    assert (len(train), len(test)) == (10, 5)
    for drawn, all_of_them in ((train, whole[0]), (test, whole[1])):
        assert drawn == [text for text in all_of_them if text in drawn]
        assert drawn != all_of_them[: len(drawn)]
    assert texts(max_train_rows=10, max_test_rows=5) == [train, test]
    assert texts(max_train_rows=40, max_test_rows=1000) == whole


def test_texts_without_labels_are_joined_client_by_client_and_cut(tmp_path):
    write(tmp_path, ".jsonl")
    data_set = Text(path=str(tmp_path), client_column="who", length=4)
    assert data_set.task == "causal-lm"
    data = data_set.load()
    # Client x: "ab" end "déf" end; client y: "c" end "" end.
    ids, targets = data.inputs("train", slice(None))["input_ids"], data.targets("train")
    assert ids.tolist() == [[97, 98, END, 100], [0xC3, 0xA9, 102, PAD], [99, END, PAD, PAD]]
    assert targets.tolist() == [
        [98, END, 100, 0xC3],
        [0xA9, 102, END, IGNORED],
        [END, END, IGNORED, IGNORED],
    ]
    assert data.train_clients.tolist() == [0, 0, 1]
    assert [len(part) for part in Natural().split(data, 0).clients] == [2, 1]
    assert data.num_classes == 0


def test_a_plain_text_has_its_paragraphs_as_rows(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("One\ntwo.\n\n\nThree.\r\n\r\nFour.\n", encoding="utf-8")
    data = Text(path=str(file), test_split=None, test_share=0.34, length=16, packing=False).load()
    texts = {bytes(t for t in row.tolist() if t < 256) for row in data.inputs("train", slice(None))["input_ids"]}
    held_out = {bytes(t for t in row.tolist() if t < 256) for row in data.inputs("test", slice(None))["input_ids"]}
    assert texts | held_out == {b"One\ntwo.", b"Three.", b"Four."}
    assert len(held_out) == 1


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("text,label\na,1\n", {"text_column": "body"}, "there is no column 'body', there are text, label"),
        ("text,label\na,1\n", {"label_column": "class"}, "there is no column 'class', there are text, label"),
        ("text,label\na\n", {}, "line 2: has 1 entries, and the first line names 2 columns"),
        ("text,text\na,b\n", {}, "its first line must name its columns, each once"),
        ('text\n"a\n', {}, "not CSV: unexpected end of data"),
        ("text\n", {}, "the training part has no rows"),
        ("", {}, "its first line must name its columns"),
    ],
)
def test_files_that_are_not_as_they_should_be(tmp_path, content, options, message):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        Text(path=str(tmp_path), **options).load()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 5}', "column 'text', row 2: is not a text"),
        ('{"text": null}', "column 'text' has 1 empty entries, the first in row 2"),
        ('{"other": "a"}', "line 2: has other keys than the lines before"),
        ("[1]", "line 2: must be a JSON object"),
        ("{", "line 2: not JSON"),
    ],
)
def test_json_lines_that_are_not_as_they_should_be(tmp_path, line, message):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        Text(path=str(tmp_path)).load()


def test_a_text_that_is_not_unicode_is_refused(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(r'{"text": "\ud800"}' + "\n")
    with pytest.raises(DataError, match="a text has a character that is not Unicode"):
        Text(path=str(tmp_path)).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either path or repo"),
        ({"path": "a", "repo": "b/c"}, "give either path or repo"),
        ({"path": "nowhere"}, "^/.*/nowhere: there is no such file or folder"),
        ({"path": ".", "test_share": 0.1}, "give either test_split or test_share"),
        ({"path": "."}, "there is no file of the split 'train'"),
        ({"path": "one.txt"}, "is one file, of which a part must be held out"),
        ({"path": "one.doc", "test_split": None, "test_share": 0.5}, "is not one of .csv, .jsonl, .parquet, .txt"),
    ],
)
def test_options_that_name_nothing(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    for name in ("one.txt", "one.doc"):
        (tmp_path / name).write_text("a\n\nb")
    with pytest.raises(DataError, match=message) as caught:
        Text(**options).load()
    if "not one of" not in message:
        assert caught.value.hint


def test_a_class_of_the_test_part_alone_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,1\nb,2\n")
    (tmp_path / "test.csv").write_text("text,label\na,3\n")
    with pytest.raises(DataError, match="column 'label' has the class '3', which the training part does not have"):
        Text(path=str(tmp_path), label_column="label").load()


def test_classes_that_are_numbers_are_sorted_as_numbers(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("text,label\na,10\nb,9\nc,-1\n")
    data = Text(path=str(tmp_path), label_column="label").load()
    assert data.class_names == ("-1", "9", "10")
    assert data.targets("train").tolist() == [2, 1, 0]


def test_classes_of_one_name_are_one_class_in_both_parts(tmp_path):
    for split, names in (("train", ("cat", "dog", "owl")), ("test", ("owl", "cat"))):
        write_parquet(tmp_path / f"{split}.parquet", {"text": ["a", "b"], "label": [0, 1]}, {"label": names})
    data = Text(path=str(tmp_path), label_column="label").load()
    assert data.class_names == ("cat", "dog", "owl")
    assert (data.targets("train").tolist(), data.targets("test").tolist()) == ([0, 1], [2, 0])


def test_strings_and_numbers_in_one_column_are_compared_as_strings(tmp_path):
    rows = [{"text": "a", "label": label, "who": who} for label in (1, "1", "x") for who in (7, "y")]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"path": str(tmp_path / "all.jsonl"), "test_split": None, "label_column": "label"}
    data = Text(**options, test_share=0.5).load()
    assert data.class_names == ("1", "x")
    assert data.targets("test").tolist() == [0, 0, 1]
    data = Text(**options, test_share=0.34, client_column="who").load()
    assert sorted(data.train_clients.tolist()) == [0, 0, 1, 1]


@given(
    texts=st.lists(st.lists(st.integers(0, 255), max_size=9), min_size=1, max_size=8),
    length=st.integers(2, 7),
    seed=st.integers(0, 9),
)
def test_packing_keeps_every_token_once_and_in_order(texts, length, seed):
    clients = np.random.default_rng(seed).integers(0, 3, size=len(texts))
    ids, targets, owners = packed(texts, clients, length, Bytes(), join=True)
    assert ids.shape == targets.shape == (len(owners), length)
    for client in np.unique(clients):
        stream = [t for row in np.flatnonzero(clients == client) for t in [*texts[row], END]]
        mine = owners == client
        counted = targets[mine] != IGNORED
        assert targets[mine][counted].tolist() == stream[1:]
        assert ids[mine][counted].tolist() == stream[:-1]
        # Only the last sequence of a client is padded.
        assert counted[:-1].all()
        assert counted.any(axis=1).all()


def test_cutting_by_hand():
    ids, mask = cut([[1, 2, 3], [4]], 2, 9)
    assert ids.tolist() == [[1, 2], [4, 9]]
    assert mask.tolist() == [[True, True], [True, False]]


def test_examples_are_picked_in_any_shape(tmp_path):
    write(tmp_path, ".csv")
    data = Text(path=str(tmp_path), label_column="label", length=4).load()
    where = torch.tensor([[2, 0], [1, 1]])
    found = data.inputs("train", where)
    assert found["input_ids"].shape == (2, 2, 4)
    assert torch.equal(found["input_ids"][0, 1], data.inputs("train", slice(0, 1))["input_ids"][0])
