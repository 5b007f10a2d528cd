"""Undo writes the inputs again, byte for byte, or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_checkpoints import model, tree, write, write_sharded

from fedmr_merge.errors import OutputError, VerificationError
from fedmr_merge.merging.average import average
from fedmr_merge.recombination.options import OutputOptions
from fedmr_merge.recombination.recombine import recombine
from fedmr_merge.recombination.undo import undo


def files(folder: Path) -> list[Path]:
    return [write(folder / f"m{i}.safetensors", model(i), {"author": f"client {i}"}) for i in range(3)]


def test_files_are_rebuilt_without_the_inputs(tmp_path: Path) -> None:
    sources = files(tmp_path / "in")
    before = [path.read_bytes() for path in sources]
    recombine(sources, tmp_path / "out")
    for path in sources:
        path.unlink()
    rebuilt = undo(tmp_path / "out", tmp_path / "back")
    assert [path.name for path in rebuilt.paths] == ["m0.safetensors", "m1.safetensors", "m2.safetensors"]
    assert [path.read_bytes() for path in rebuilt.paths] == before
    assert (rebuilt.missing, rebuilt.proved) == ([], True)


def test_folders_of_shards_are_rebuilt_with_their_indexes(tmp_path: Path) -> None:
    sources = [write_sharded(tmp_path / f"m{i}", model(i), 2 + i, sidecars={"config.json": "{}"}) for i in range(2)]
    recombine(sources, tmp_path / "out", output=OutputOptions(hash=False))
    rebuilt = undo(tmp_path / "out", tmp_path / "back")
    assert [tree(path) for path in rebuilt.paths] == [tree(path) for path in sources]
    assert not rebuilt.proved  # no hashes were recorded


@pytest.mark.parametrize(("hashed", "passes"), [(False, 1), (True, 2)])
def test_outputs_are_read_once_more_only_where_there_is_something_to_compare(
    hashed: bool, passes: int, tmp_path: Path
) -> None:
    recombine(files(tmp_path), tmp_path / "out", output=OutputOptions(hash=hashed, mean=None))
    passed: list[int] = []
    undo(tmp_path / "out", tmp_path / "back", progress=passed.append)
    assert sum(passed) == passes * 3 * sum(len(raw) for _, _, raw in model(0).values())
    other = model(9) | {"head.bias": ("F32", (9,), bytes(36))}
    write(tmp_path / "out" / "slot-01.safetensors", other)
    with pytest.raises(VerificationError, match=r"slot-01.*'head.bias' must be F32 \[10\], found F32 \[9\]"):
        undo(tmp_path / "out", tmp_path / "again")


def test_sources_of_one_name_are_rebuilt_by_their_slot(tmp_path: Path) -> None:
    sources = [write(tmp_path / str(i) / "model.safetensors", model(i)) for i in range(2)]
    recombine(sources, tmp_path / "out")
    rebuilt = undo(tmp_path / "out", tmp_path / "back").paths
    assert [path.name for path in rebuilt] == ["slot-00.safetensors", "slot-01.safetensors"]
    assert [path.read_bytes() for path in rebuilt] == [path.read_bytes() for path in sources]


def test_it_needs_every_slot_and_a_free_place(tmp_path: Path) -> None:
    sources = files(tmp_path)
    recombine(sources, tmp_path / "out")
    (tmp_path / "back").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        undo(tmp_path / "out", tmp_path / "back")
    with pytest.raises(OutputError, match="lies in the output that is read"):
        undo(tmp_path / "out", tmp_path / "out" / "back")
    recombine(sources, tmp_path / "some", output=OutputOptions(slots=(0, 1)))
    with pytest.raises(VerificationError, match="undo needs all 3"):
        undo(tmp_path / "some", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_models_cannot_be_rebuilt_from_their_mean(tmp_path: Path) -> None:
    average(files(tmp_path), tmp_path / "mean")
    with pytest.raises(VerificationError, match="the models cannot be rebuilt from their mean"):
        undo(tmp_path / "mean", tmp_path / "back")


def test_an_output_that_was_changed_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    recombine(files(tmp_path), tmp_path / "out")
    changed = tmp_path / "out" / "slot-01.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1])
    with pytest.raises(VerificationError, match=r"slot-01\.safetensors"):
        undo(tmp_path / "out", tmp_path / "back")
    assert not (tmp_path / "back").exists()
