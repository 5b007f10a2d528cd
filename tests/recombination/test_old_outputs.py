"""Outputs of version 0.1.0 are verified, undone, traced and recombined on."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from small_checkpoints import read, tree

from fedmr_merge.lineage.trace import trace
from fedmr_merge.merging.options import MeanOptions
from fedmr_merge.recombination.layouts.store import StoreLayout
from fedmr_merge.recombination.options import OutputOptions, PlanOptions
from fedmr_merge.recombination.recombine import recombine
from fedmr_merge.recombination.undo import undo
from fedmr_merge.recombination.verify import verify

FIXTURES = Path(__file__).parents[1] / "fixtures" / "0.1.0"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The outputs as 0.1.0 left them: the shards of models in a store are read-only and linked."""
    old = Path(shutil.copytree(FIXTURES, tmp_path / "old"))
    store = old / "store" / ".fedmr-merge-store"
    for index in (old / "store").glob("*/slot-*/*.index.json"):
        for shard in set(json.loads(index.read_text())["weight_map"].values()):
            address = shard.removeprefix("model-")
            (store / address[:2] / address).chmod(0o444)
            os.link(store / address[:2] / address, index.parent / shard)
    return old


def inputs(folder: Path) -> list[Path]:
    return sorted(folder.glob("m?*"))


@pytest.mark.parametrize("out", ["files/out", "folders/out", "store/one"])
def test_they_are_verified_and_undone(out: str, old: Path, tmp_path: Path) -> None:
    report = verify(old / out)
    assert (report.faults, report.skipped, report.warnings) == ([], [], [])
    assert "global is the mean of the models, byte for byte" in report.proved
    assert "the outputs hold the inputs' tensors, each byte for byte" in report.proved
    before = inputs(old / out.split("/")[0])
    rebuilt = undo(old / out, tmp_path / "back")
    assert rebuilt.proved
    assert rebuilt.missing == []
    for path, original in zip(rebuilt.paths, before, strict=True):
        assert path.name == original.name
        assert path.read_bytes() == original.read_bytes() if path.is_file() else tree(path) == tree(original)


@pytest.mark.parametrize("out", ["files/out", "folders/out"])
def test_todays_code_writes_the_same_bytes(out: str, old: Path, tmp_path: Path) -> None:
    sources = inputs((old / out).parent)
    output = OutputOptions(mean=MeanOptions(weights=(1.0, 2.0, 0.5)))
    recombine(sources, tmp_path / "again", PlanOptions(seed=3), output)
    today, before = tree(tmp_path / "again"), tree(old / out)
    for files in (today, before):
        del files["lineage.json"]
    assert today == before
    lineages = [json.loads((place / "lineage.json").read_text()) for place in (tmp_path / "again", old / out)]
    for lineage in lineages:
        for told in ("made_by", "rule_found"):  # words for people
            lineage.pop(told)
        for parent in lineage["sources"]:
            parent.pop("path")
    assert lineages[0] == lineages[1]


def test_two_rounds_in_a_store_are_traced_and_recombined_on(old: Path) -> None:
    store = old / "store"
    assert verify(store / "two").faults == []
    for slot, chain in enumerate(trace(store / "two", "head.weight")):
        assert len(chain) == 2
        parent = inputs(store)[chain[-1].origin.source_slot]
        assert read(store / "two" / f"slot-{slot:02d}")["head.weight"] == read(parent)["head.weight"]
        assert chain[-1].place == str(parent / "model.safetensors")
    outcome = recombine(
        sorted((store / "two").glob("slot-*")),
        store / "three",
        PlanOptions(seed=3, round=3),
        OutputOptions(mean=None, layout=StoreLayout()),
    )
    assert outcome.store is not None
    assert (outcome.store.linked, outcome.store.copied_in, outcome.store.copied_instead) == (24, 0, 0)
    assert verify(store / "three").faults == []
    assert [len(chain) for chain in trace(store / "three", "head.weight")] == [3, 3, 3]
    assert contents(sorted((store / "three").glob("slot-*"))) == contents(inputs(store))


def contents(models: list[Path]) -> Counter[tuple[str, object]]:
    return Counter((name, raw) for model in models for name, raw in read(model).items())
