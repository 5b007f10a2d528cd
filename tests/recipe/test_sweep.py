"""Sweeps are done: several runs, resumed, divided, with a run that fails."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_run import RECIPE, command

from fedmr_merge.errors import RunError
from fedmr_merge.recipe.sweep import Skipped, Started, Sweep
from fedmr_merge.recipe.sweep_file import read_sweep, sweep_runs
from fedmr_merge.recipe.sweep_workers import Ended, Progress
from fedmr_merge.report.comparison import comparison_csv
from fedmr_merge.report.study import read_study

METHODS = {
    "FedAvg": {"stages": [{"fedavg": {"rounds": 2}}, {"evaluate": {}}]},
    "FedMR": {"stages": [{"fedavg": {"rounds": 1}}, {"fedmr": {"rounds": 1}}, {"evaluate": {}}]},
}
#: A learning rate with which every client's loss passes all bounds: the run ends in the middle.
DIVERGES = {"training.lr": 1e9, "stages": [{"fedavg": {"rounds": 2}}]}


def write(folder: Path, methods: dict[str, object], seeds: list[int]) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(RECIPE))
    content = {"name": "few", "recipe": "base.yaml", "seeds": seeds, "axes": {"method": methods}}
    (folder / "few.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "few.yaml"


def opened(file: Path, out: Path) -> Sweep:
    definition = read_sweep(file)
    return Sweep(definition, sweep_runs(definition), out)


def test_a_sweep_does_its_runs_and_the_same_command_does_nothing_more(tmp_path: Path) -> None:
    file, out = write(tmp_path, {**METHODS, "diverges": DIVERGES}, [0]), tmp_path / "out"
    sweep = opened(file, out)
    sweep.prepare()
    events = list(sweep.execute(1))
    ended = {event.name: event.fault for event in events if isinstance(event, Ended)}
    assert list(ended) == ["FedAvg_seed0", "FedMR_seed0", "diverges_seed0"]
    assert ended["FedAvg_seed0"] is None
    assert ended["FedMR_seed0"] is None
    assert "diverged" in (ended["diverges_seed0"] or "")
    rounds = [(e.name, e.round, e.rounds) for e in events if isinstance(e, Progress)]
    assert rounds[:2] == [("FedAvg_seed0", 1, 2), ("FedAvg_seed0", 2, 2)]
    assert list((out / "claims").iterdir()) == []

    again = list(opened(file, out).execute(1))
    assert [e.name for e in again if isinstance(e, Skipped)] == ["FedAvg_seed0", "FedMR_seed0"]
    assert [e.name for e in again if isinstance(e, Started)] == ["diverges_seed0"]  # what failed is tried again

    columns = comparison_csv(read_study([out])).splitlines()[0].split(",")
    assert {"method", "seed", "last10", "torch"} <= set(columns)
    assert command("report", out, "-o", tmp_path / "page") == 0
    assert (tmp_path / "page" / "index.html").stat().st_size > 10**6


def test_shares_are_disjoint_and_together_all_runs(tmp_path: Path) -> None:
    sweep = opened(write(tmp_path, METHODS, [0, 1, 2]), tmp_path / "out")
    for count in (1, 2, 4, 7):
        shares = [sweep.runs[i - 1 :: count] for i in range(1, count + 1)]
        assert sorted(run.name for share in shares for run in share) == sorted(run.name for run in sweep.runs)


def test_what_another_process_works_on_is_left_to_it(tmp_path: Path) -> None:
    from fedmr_merge.recipe.claims import Claims

    sweep = opened(write(tmp_path, METHODS, [0]), tmp_path / "out")
    sweep.prepare()
    with Claims(tmp_path / "out" / "claims") as others:
        assert all(others.take(run.name) for run in sweep.runs)
        assert list(sweep.execute(1)) == [Skipped(run.name, "another process works on it") for run in sweep.runs]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    sweep = opened(write(tmp_path, METHODS, [0]), tmp_path)
    with pytest.raises(RunError, match="does not hold a sweep"):
        sweep.prepare()
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "other", "axes": {}, "published": [], "runs": {}}))
    with pytest.raises(RunError, match="holds the sweep 'other'"):
        sweep.prepare()
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(RunError, match="damaged"):
        sweep.prepare()


def test_a_recipe_with_a_fault_stops_the_sweep_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, {"FedAvg": {"stages": [{"fedavgg": {"rounds": 2}}]}}, [0])
    assert command("sweep", file, "--out", tmp_path / "out") == 2
    assert "did you mean fedavg?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_sweep_killed_at_random_ends_with_the_same_table(tmp_path: Path) -> None:
    file = write(tmp_path, METHODS, [0, 1])
    program = [sys.executable, "-m", "fedmr_merge", "sweep", str(file), "--jobs", "2", "--rounds", "6", "--out"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert subprocess.run([*program, str(whole)], check=False).returncode == 0
    draw = random.Random(0)
    for _ in range(20):
        with subprocess.Popen([*program, str(cut)], start_new_session=True) as process:
            time.sleep(draw.uniform(0.5, 12))
            os.killpg(process.pid, signal.SIGKILL)
        for claim in (cut / "claims").glob("*.claim"):  # as though three minutes had passed
            os.utime(claim, (0, 0))
    assert subprocess.run([*program, str(cut)], check=False).returncode == 0
    assert comparison_csv(read_study([cut])) == comparison_csv(read_study([whole]))
