"""A tensor is traced back through every recombination in a row."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_checkpoints import LINEAR, model, write, write_folder

from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.errors import VerificationError
from fedmr_merge.lineage.trace import trace
from fedmr_merge.recombination.options import OutputOptions, PlanOptions
from fedmr_merge.recombination.recombine import recombine


def test_a_tensor_is_followed_through_recombinations_in_a_row(tmp_path: Path) -> None:
    sources = [write(tmp_path / f"m{i}.safetensors", model(i, LINEAR)) for i in range(4)]
    paths: list[Path] = sources
    for round in (1, 2, 3):
        recombine(paths, tmp_path / f"r{round}", PlanOptions(round=round), OutputOptions(mean=None))
        paths = sorted((tmp_path / f"r{round}").glob("slot-*"))
    for slot, chain in enumerate(trace(tmp_path / "r3", "layer2.weight")):
        assert len(chain) == 3
        assert chain[0].origin.slot == slot
        first = chain[-1].origin
        origin = sources[first.source_slot]
        there = open_checkpoint(origin).tensors["layer2.weight"]
        assert origin.read_bytes()[there.start : there.end] == model(first.source_slot, LINEAR)["layer2.weight"][2]
        entry = open_checkpoint(paths[slot]).tensors["layer2.weight"]
        assert paths[slot].read_bytes()[entry.start : entry.end] == origin.read_bytes()[there.start : there.end]
        assert first.source_file == origin.name
        assert chain[-1].place == str(origin)
        assert [Path(step.place).parent.name for step in chain[:2]] == ["r2", "r1"]
    assert [c[0].origin.slot for c in trace(tmp_path / "r3", "layer2.weight", 1)] == [1]
    with pytest.raises(VerificationError, match=r"did you mean 'layer2\.weight'"):
        trace(tmp_path / "r3", "layer2.wight")
    with pytest.raises(VerificationError, match="no slot 4") as caught:
        trace(tmp_path / "r3", "layer2.weight", 4)
    assert caught.value.hint == "its slots are 0, 1, 2, 3"


@pytest.mark.parametrize("named", ["folder", "file", "link"])
def test_a_tensor_is_followed_however_an_input_was_named(named: str, tmp_path: Path) -> None:
    sources = [write_folder(tmp_path / f"m{i}", model(i, LINEAR)) for i in range(2)]
    recombine(sources, tmp_path / "r1", output=OutputOptions(mean=None))
    paths = sorted((tmp_path / "r1").glob("slot-*"))
    if named == "file":
        paths = [path / "model.safetensors" for path in paths]
    if named == "link":
        for path in paths:
            (tmp_path / "links" / path.name).parent.mkdir(exist_ok=True)
            (tmp_path / "links" / path.name).symlink_to(path)
        paths = sorted((tmp_path / "links").iterdir())
    recombine(paths, tmp_path / "r2", output=OutputOptions(mean=None))
    for chain in trace(tmp_path / "r2", "layer2.weight"):
        assert len(chain) == 2
        assert chain[-1].place == f"{sources[chain[-1].origin.source_slot]}/model.safetensors"
        assert chain[-1].ends is None


def test_a_trace_says_why_it_ends_at_an_earlier_recombination(tmp_path: Path) -> None:
    sources = [write_folder(tmp_path / f"m{i}", model(i, LINEAR)) for i in range(2)]
    recombine(sources, tmp_path / "r1")
    recombine([tmp_path / "r1" / "global", tmp_path / "r1" / "slot-00"], tmp_path / "r2", PlanOptions(probability=0))
    mean, other = trace(tmp_path / "r2", "layer2.weight")
    assert len(mean) == 1
    assert f"the mean of the 2 models that {tmp_path / 'r1' / 'lineage.json'} names" in str(mean[0].ends)
    assert (len(other), other[-1].ends) == (2, None)
    (tmp_path / "r1" / "lineage.json").write_text("{")
    for chain in trace(tmp_path / "r2", "layer2.weight"):
        assert len(chain) == 1
        assert "r1/lineage.json: damaged" in str(chain[0].ends)
