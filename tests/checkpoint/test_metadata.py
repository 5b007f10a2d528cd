"""What is kept in a file's metadata: layers by the trainer, hashes by a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_checkpoints import floats, write

from fedmr_merge.checkpoint.metadata import HASHES_KEY, LAYERS_KEY, read_hashes, read_layers, shared_metadata
from fedmr_merge.checkpoint.open import WeightFile, open_checkpoint
from fedmr_merge.errors import CheckpointError, RuleError


def file(path: Path, **metadata: str) -> WeightFile:
    write(path, {path.stem: floats([1.0])}, {f"fedmr_merge.{key}": value for key, value in metadata.items()})
    return open_checkpoint(path).files[0]


def test_layers_and_hashes_are_read(tmp_path: Path) -> None:
    digest = "0" * 64
    found = file(tmp_path / "a.safetensors", layers='{"a": "conv"}', sha256=json.dumps({"a": digest}))
    assert read_layers(found) == {"a": "conv"}
    assert read_hashes(found) == {"a": digest}
    assert read_layers(file(tmp_path / "b.safetensors")) == {}


def test_the_metadata_of_shards_is_one_without_what_is_of_a_single_shard(tmp_path: Path) -> None:
    files = [
        file(tmp_path / "a.safetensors", layers='{"a": "conv"}', sha256="{}", other="x"),
        file(tmp_path / "b.safetensors", layers='{"b": "fc"}', sha256="{}"),
    ]
    assert HASHES_KEY not in shared_metadata(files)
    assert json.loads(shared_metadata(files)[LAYERS_KEY]) == {"a": "conv", "b": "fc"}
    assert shared_metadata(files)["fedmr_merge.other"] == "x"


@pytest.mark.parametrize("layers", ["{", "[]", '{"a": 1}', "[" * 100_000])
def test_a_damaged_grouping_names_its_file(tmp_path: Path, layers: str) -> None:
    with pytest.raises(RuleError, match=r"a\.safetensors: metadata fedmr_merge\.layers: ") as caught:
        read_layers(file(tmp_path / "a.safetensors", layers=layers))
    assert caught.value.path == str(tmp_path / "a.safetensors")


@pytest.mark.parametrize("hashes", ["{", "{}", '{"a": "00"}', json.dumps({"a": "0" * 64, "b": "0" * 64}), '{"a": 1}'])
def test_damaged_hashes_vouch_for_nothing(tmp_path: Path, hashes: str) -> None:
    with pytest.raises(CheckpointError, match=r"metadata fedmr_merge\.sha256: "):
        read_hashes(file(tmp_path / "a.safetensors", sha256=hashes))
