"""Run folders that version 0.1.0 wrote are resumed, extended, read and described."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_run import command
from small_runs import follow

from fedmr_merge.recipe.run import Run
from fedmr_merge.recipe.schema import read_recipe
from fedmr_merge.runs.record import read_run

RUNS = Path(__file__).parents[1] / "fixtures" / "0.1.0" / "runs"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs, in the directory from which they were made: their recipes name `images`."""
    pytest.importorskip("pyarrow")
    shutil.copytree(RUNS, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


def test_an_interrupted_run_is_resumed(folder: Path) -> None:
    recipe = read_recipe(folder / "interrupted" / "recipe.yaml")
    with Run(recipe, folder / "interrupted") as run:
        assert run.resumed_from is not None
        assert run.resumed_from.folder == "1-fedmr-0001"
        assert all("not as when the run began: " in warning for warning in run.warnings())
    assert follow(folder / "interrupted", recipe) == [2]
    last = json.loads((folder / "interrupted" / "metrics.jsonl").read_text().splitlines()[1])
    assert last["train_loss"] == pytest.approx(1.106153, abs=1e-3), "what 0.1.0 went on to"
    assert command("run", folder / "interrupted" / "recipe.yaml", "--out", folder / "interrupted") == 0
    more = ("--set", "stages[0].fedmr.rounds=3", "--extend", "--quiet")
    assert command("run", folder / "interrupted" / "recipe.yaml", "--out", folder / "interrupted", *more) == 0
    assert [line["round"] for line in read_run(folder / "interrupted").metrics] == [1, 2, 3]


def test_a_renamed_tensor_is_found_without_hashes(folder: Path) -> None:
    checkpoint = folder / "interrupted" / "checkpoints" / "1-fedmr-0001"
    model = checkpoint / "slot-01" / "model.safetensors"
    model.write_bytes(model.read_bytes().replace(b'"fc.bias"', b'"fc.bios"'))
    assert command("run", folder / "interrupted" / "recipe.yaml", "--out", folder / "interrupted") == 2
    shutil.rmtree(model.parent)
    assert command("run", folder / "interrupted" / "recipe.yaml", "--out", folder / "interrupted") == 2


def test_a_finished_run_is_compared_and_described(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (folder / "finished", folder / "finished" / "global"):
        run = read_run(place)
        assert [line["method"] for line in run.metrics] == ["fedavg", "fedmr"]
        assert run.lineage[1]["plan"]["slots"] == 2
        assert run.partition is not None
        assert run.environment is not None
        assert run.evaluation is not None
    assert command("compare", folder / "finished", "-o", folder / "out") == 0
    assert "finished" in capsys.readouterr().out
    assert command("card", folder / "finished" / "global") == 0
    assert "fedmr" in (folder / "finished" / "global" / "README.md").read_text()
