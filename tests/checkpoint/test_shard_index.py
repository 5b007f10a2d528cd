"""The index of a sharded folder is read strictly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmr_merge.checkpoint.shard_index import read_weight_map
from fedmr_merge.errors import CheckpointError


def test_shards_are_returned_in_the_order_of_the_index(tmp_path: Path) -> None:
    shards = {"b": "2.safetensors", "a": "1.safetensors"}
    (tmp_path / "index.json").write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": shards}))
    assert list(read_weight_map(tmp_path / "index.json").items()) == list(shards.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "weight_map must map"),
        ("{}", "weight_map must map"),
        ('{"weight_map": {}}', "weight_map must map"),
        ('{"weight_map": {"a": 1}}', "weight_map must map"),
        ('{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}', "names 'a' twice"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_not_an_index_is_one_line_with_a_hint(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_weight_map(tmp_path / "index.json", Path("org/model/index.json"))
    assert str(caught.value).startswith("org/model/index.json: ")
    assert "\n" not in str(caught.value)
    assert "fetch the index again" in str(caught.value.hint)


def test_an_index_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"index\.json: cannot be read: No such file"):
        read_weight_map(tmp_path / "index.json")
