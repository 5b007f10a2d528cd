"""Which of a folder's weights its library loads, by their names alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmr_merge.checkpoint.weight_names import choose_weights, may_hold_weights, shard_order
from fedmr_merge.errors import CheckpointError

PLACE = Path("folder")
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ([], None),
        (["config.json", "pytorch_model.bin"], None),
        (["weights.safetensors"], "weights.safetensors"),
        (["other.safetensors", "model.safetensors"], "model.safetensors"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX], INDEX),
        (["model.safetensors", INDEX], "model.safetensors"),  # as transformers
        (
            ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"],
            "diffusion_pytorch_model.safetensors.index.json",  # as diffusers
        ),
        (["model.fp16.safetensors", "model.safetensors"], "model.safetensors"),
        (["model.fp16.safetensors"], "model.fp16.safetensors"),
        (["own.safetensors.index.json", "a.safetensors", "b.safetensors"], "own.safetensors.index.json"),
    ],
)
def test_the_weights_that_the_library_loads(files: list[str], chosen: str | None) -> None:
    for order in (files, files[::-1]):
        assert choose_weights(PLACE, order) == chosen


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model.fp16.safetensors", "model.bf16.safetensors"], "several variants, and none without a variant"),
        (["a.safetensors.index.json", "b.safetensors.index.json"], "several indexes, none of a standard name"),
        (["a.safetensors", "b.safetensors"], "2 weight files and no index: a.safetensors, b.safetensors"),
    ],
)
def test_where_several_could_be_meant_none_is_taken(files: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        choose_weights(PLACE, files)
    assert caught.value.hint


def test_shards_are_sorted_by_number_and_those_of_a_store_stay_as_they_are() -> None:
    shards = ["model-00010-of-00010.safetensors", "model-00002-of-00010.safetensors"]
    assert sorted(shards, key=shard_order) == shards[::-1]
    stored = ["model-ff.safetensors", "model-aa.safetensors"]
    assert sorted(stored, key=shard_order) == stored


def test_a_file_of_any_name_may_hold_weights_by_how_it_begins(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "notes").write_bytes(b"a text of more than nine bytes")
    (tmp_path / "model.bin").write_bytes(b"")
    found = {path.name: may_hold_weights(path) for path in tmp_path.iterdir()}
    assert found == {"weights": True, "notes": False, "model.bin": True}
