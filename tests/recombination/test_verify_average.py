"""An average has a lineage, and can be verified by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import LINEAR, MIXED, model, write, write_folder, write_sharded

from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.cli.app import main
from fedmr_merge.errors import VerificationError
from fedmr_merge.lineage.trace import trace
from fedmr_merge.merging.average import average
from fedmr_merge.merging.options import MeanOptions
from fedmr_merge.publish.merge_facts import find_lineage, published_lineage
from fedmr_merge.recombination.options import OutputOptions
from fedmr_merge.recombination.recombine import recombine
from fedmr_merge.recombination.undo import undo
from fedmr_merge.recombination.verify import verify


@pytest.fixture(params=["files", "folders", "shards"])
def sources(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    if request.param == "files":
        return [write(tmp_path / f"m{i}.safetensors", model(i)) for i in range(3)]
    if request.param == "folders":
        return [write_folder(tmp_path / f"m{i}", model(i), {"config.json": "{}"}) for i in range(3)]
    return [write_sharded(tmp_path / f"m{i}", model(i), 2) for i in range(3)]


def flip(path: Path, tensor: str) -> None:
    entry = open_checkpoint(path).tensors[tensor]
    raw = bytearray(entry.file.read_bytes())
    raw[entry.start + 2] ^= 64  # not the last bit, which a mean rounds away
    entry.file.write_bytes(bytes(raw))


def forget_hashes(out: Path) -> None:
    content = json.loads((out / "lineage.json").read_text())
    content["global"]["sha256"] = None
    (out / "lineage.json").write_text(json.dumps(content))


@pytest.mark.parametrize("options", [MeanOptions(), MeanOptions(weights=(1, 2, 0.5), double=True, out_dtype="F64")])
def test_an_average_is_proved(options: MeanOptions, sources: list[Path], tmp_path: Path) -> None:
    average(sources, tmp_path / "mean", options=options)
    content = json.loads((tmp_path / "mean" / "lineage.json").read_text())
    assert (content["operation"], content["tensors"], content["outputs"]) == ("average", [], [])
    assert [parent["path"] for parent in content["sources"]] == [f"../{path.name}" for path in sources]
    for against in (None, sources):
        report = verify(tmp_path / "mean", against)
        assert (report.faults, report.skipped, report.warnings) == ([], [], [])
        assert report.proved == [
            "every tensor has the SHA-256 that was recorded",
            "it is the mean of the inputs, byte for byte",
        ]
        assert report.tensors == len(MIXED)


def test_a_single_file_has_no_lineage(sources: list[Path], tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    average(sources, tmp_path / "mean.safetensors", max_shard_bytes=10**9)
    assert set(tmp_path.iterdir()) - before == {tmp_path / "mean.safetensors"}


def test_damage_is_found_with_and_without_the_inputs(sources: list[Path], tmp_path: Path) -> None:
    average(sources, tmp_path / "mean")
    flip(tmp_path / "mean", "head.weight")
    assert any("'head.weight' is not what was written" in fault for fault in verify(tmp_path / "mean").faults)
    sources[0].rename(tmp_path / "gone")
    report = verify(tmp_path / "mean")
    assert any("'head.weight' is not what was written" in fault for fault in report.faults)
    assert report.skipped == [f"comparison with the inputs: {sources[0]} is not there"]


def test_hashes_are_recorded_by_verify(sources: list[Path], tmp_path: Path) -> None:
    average(sources, tmp_path / "mean")
    before = json.loads((tmp_path / "mean" / "lineage.json").read_text())
    forget_hashes(tmp_path / "mean")
    assert verify(tmp_path / "mean").ok
    assert json.loads((tmp_path / "mean" / "lineage.json").read_text()) == before
    forget_hashes(tmp_path / "mean")
    flip(tmp_path / "mean", "head.weight")
    (fault,) = verify(tmp_path / "mean").faults
    assert "is not the mean of the inputs" in fault
    sources[0].rename(tmp_path / "gone")
    (fault,) = verify(tmp_path / "mean").faults
    assert "nothing vouches for the bytes" in fault


def test_inputs_that_changed_since_are_a_warning(sources: list[Path], tmp_path: Path) -> None:
    average(sources, tmp_path / "mean")
    flip(sources[1], "head.weight")
    report = verify(tmp_path / "mean")
    assert report.ok
    assert any("the inputs have changed since" in line for line in report.warnings)
    write(open_checkpoint(sources[1]).files[0].path, model(0, LINEAR))
    report = verify(tmp_path / "mean")
    assert report.ok
    assert any("the inputs have changed since" in line for line in report.warnings)
    with pytest.raises(VerificationError, match="2 inputs were given, the average had 3"):
        verify(tmp_path / "mean", sources[:2])


def test_what_an_average_cannot_do(sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    average(sources, tmp_path / "mean")
    with pytest.raises(VerificationError, match="cannot be rebuilt from their mean"):
        undo(tmp_path / "mean", tmp_path / "back")
    with pytest.raises(VerificationError, match="comes from all of its 3 models"):
        trace(tmp_path / "mean", "head.weight")
    lineage, part = find_lineage(tmp_path / "mean") or (None, "not found")
    assert lineage is not None
    assert (lineage.folder, part) == (tmp_path / "mean", None)
    text = "".join(published_lineage(tmp_path / "mean" / "lineage.json") or ())
    (tmp_path / "mean" / "lineage.json").write_text(text)
    assert str(tmp_path) not in text
    assert verify(tmp_path / "mean", sources).ok
    main_ok(["verify", str(tmp_path / "mean"), *(part for path in sources for part in ("--against", str(path)))])
    assert "it is the mean of the inputs" in capsys.readouterr().out


def main_ok(arguments: list[str]) -> None:
    try:
        main(arguments)
    except SystemExit as ended:
        assert not ended.code  # noqa: PT017 - it ends with 0 or not at all


def test_a_trace_ends_at_an_average(sources: list[Path], tmp_path: Path) -> None:
    average(sources, tmp_path / "mean")
    recombine([tmp_path / "mean", sources[0]], tmp_path / "out", output=OutputOptions(mean=None, slots=(0, 1)))
    chains: Any = trace(tmp_path / "out", "head.weight")
    (of_mean,) = [chain for chain in chains if chain[0].origin.source_slot == 0]
    assert f"it is the mean of the 3 models that {tmp_path / 'mean' / 'lineage.json'} names" in str(of_mean[0].ends)
    assert not list((tmp_path / "out").rglob("slot-*/lineage.json"))
