"""Sweeps are done: several runs, resumed, divided, with a run that fails."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from small_run import command
from small_runs import RECIPE

from fedmr_merge.errors import RunError
from fedmr_merge.recipe.claims import EXPIRES_AFTER_SECONDS
from fedmr_merge.recipe.run import Run
from fedmr_merge.recipe.schema import parse_recipe
from fedmr_merge.recipe.sweep import Skipped, Started, Sweep
from fedmr_merge.recipe.sweep_file import read_sweep, sweep_runs
from fedmr_merge.recipe.sweep_workers import Ended, Progress, Warned
from fedmr_merge.report.comparison import comparison_csv
from fedmr_merge.report.study import read_study
from fedmr_merge.runs.sweep_folder import read_sweep_folder

METHODS = {
    "FedAvg": {"stages": [{"fedavg": {"rounds": 2}}, {"evaluate": {}}]},
    "FedMR": {"stages": [{"fedavg": {"rounds": 1}}, {"fedmr": {"rounds": 1}}, {"evaluate": {}}]},
}
#: A learning rate with which every client's loss passes all bounds: the runs end in the rounds that they share.
DIVERGES = {
    "diverges": {"training.lr": 1e9, "stages": [{"fedavg": {"rounds": 3}}]},
    "too": {"training.lr": 1e9, "stages": [{"fedavg": {"rounds": 2}}, {"fedmr": {"rounds": 1}}]},
}


def write(folder: Path, methods: dict[str, object], seeds: list[int]) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(RECIPE))
    content = {"name": "few", "recipe": "base.yaml", "seeds": seeds, "axes": {"method": methods}}
    (folder / "few.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "few.yaml"


def opened(file: Path, out: Path) -> Sweep:
    definition = read_sweep(file)
    return Sweep(definition, sweep_runs(definition), out)


def test_a_sweep_does_its_runs_and_the_same_command_does_nothing_more(tmp_path: Path) -> None:
    file, out = write(tmp_path, {**METHODS, **DIVERGES}, [0]), tmp_path / "out"
    sweep = opened(file, out)
    sweep.prepare()
    events = list(sweep.execute(1))
    ended = {event.name: event.fault for event in events if isinstance(event, Ended)}
    assert ended["FedAvg_seed0"] is None
    assert ended["FedMR_seed0"] is None
    [fault] = [fault for name, fault in ended.items() if name.startswith("beginning-") and fault]
    assert "diverged" in fault
    for name in ("diverges_seed0", "too_seed0"):  # what begins with a run that failed has failed
        assert "its first rounds, beginning-" in (ended[name] or "")
    rounds = {(e.name, e.round, e.rounds) for e in events if isinstance(e, Progress)}
    assert {("FedAvg_seed0", 2, 2), ("FedMR_seed0", 2, 2)} <= rounds
    assert ("FedAvg_seed0", 1, 2) not in rounds  # the first round is one that they share
    assert list((out / "claims").iterdir()) == []

    again, told = opened(file, out).execute(1), []
    while not (told and isinstance(told[-1], Started)):
        told.append(next(again))
    again.close()
    assert [e.name for e in told if isinstance(e, Skipped)] == ["FedAvg_seed0", "FedMR_seed0"]
    assert told[-1].name.startswith("beginning-")  # what failed is tried again, from its beginning

    columns = comparison_csv(read_study([out])).splitlines()[0].split(",")
    assert {"method", "seed", "last10", "torch"} <= set(columns)
    assert command("report", out, "-o", tmp_path / "page") == 0
    assert (tmp_path / "page" / "index.html").stat().st_size > 10**6


def test_rounds_in_common_are_run_once_and_give_the_same_bytes(tmp_path: Path) -> None:
    """FedAvg 3, FedMR after 1 and after 2 rounds of FedAvg: two beginnings, one of which begins with the other."""
    methods = {
        "FedAvg": {"stages": [{"fedavg": {"rounds": 3}}]},
        "FedMR-1": {"stages": [{"fedavg": {"rounds": 1}}, {"fedmr": {"rounds": 2}}]},
        "FedMR-2": {"stages": [{"fedavg": {"rounds": 2}}, {"fedmr": {"rounds": 1}}]},
        "FedProx": {"stages": [{"fedprox": {"rounds": 2}}]},
    }
    sweep = opened(write(tmp_path, methods, [0]), tmp_path / "out")
    tasks = list(sweep.tasks.values())
    first, second = (task for task in tasks if task.name.startswith("beginning"))
    assert (first.beginning, first.recipe.rounds) == (None, 1)
    assert (second.beginning.task, second.beginning.round, second.recipe.rounds) == (first.name, 1, 2)
    begins = {task.name: task.beginning and (task.beginning.task, task.beginning.round) for task in tasks}
    assert begins["FedAvg_seed0"] == begins["FedMR-2_seed0"] == (second.name, 2)
    assert begins["FedMR-1_seed0"] == (first.name, 1)
    assert begins["FedProx_seed0"] is None

    sweep.prepare()
    events = list(sweep.execute(1))
    assert [event.fault for event in events if isinstance(event, Ended)] == [None] * 6
    assert sum(isinstance(event, Progress) for event in events) == 2 + 1 + 2 + 1 + 2  # instead of 11 rounds
    for run in sweep.runs:
        alone = tmp_path / "alone" / run.name
        with Run(parse_recipe(run.recipe, run.name), alone) as plain:
            list(plain.execute())
        shared = tmp_path / "out" / "runs" / run.name
        assert models(shared) == models(alone)
        assert (shared / "task.json").read_bytes() == (alone / "task.json").read_bytes()
        for log in ("metrics.jsonl", "lineage.jsonl"):
            assert [entry(line) for line in (shared / log).open()] == [entry(line) for line in (alone / log).open()]
    assert len(read_study([tmp_path / "out"]).experiments) == 4


def test_rounds_whose_number_is_not_known_beforehand_are_not_shared(tmp_path: Path) -> None:
    until = {"until": {"plateau": {"patience": 1}}}
    methods = {
        "FedAvg": {"stages": [{"fedavg": {"rounds": 5}}]},
        "early": {"stages": [{"fedavg": {"rounds": 5, **until}}, {"fedmr": {"rounds": 1}}]},
        "early too": {"stages": [{"fedavg": {"rounds": 5, **until}}, {"fedprox": {"rounds": 1}}]},
        "later": {"stages": [{"fedavg": {"rounds": 2}}, {"fedmr": {"rounds": 3, **until}}]},
    }
    begins = {name: task.beginning for name, task in opened(write(tmp_path, methods, [0]), tmp_path).tasks.items()}
    assert begins["early_seed0"] is begins["early-too_seed0"] is None
    assert begins["FedAvg_seed0"] == begins["later_seed0"] is not None
    assert begins["later_seed0"].round == 2


def models(run: Path) -> dict[str, bytes]:
    """Return the models of a run's last checkpoint."""
    newest = max((run / "checkpoints").iterdir(), key=lambda path: path.name.rpartition("-")[2])
    return {path.parent.name: path.read_bytes() for path in newest.rglob("model.safetensors")}


def entry(line: str) -> dict[str, object]:
    """Return a line of a log without what the clock says."""
    return {key: value for key, value in json.loads(line).items() if key != "seconds"}


def test_shares_are_disjoint_and_together_all_runs(tmp_path: Path) -> None:
    sweep = opened(write(tmp_path, METHODS, [0, 1, 2]), tmp_path / "out")
    for count in (1, 2, 4, 7):
        shares = [[task.name for task in sweep._share((i, count))] for i in range(1, count + 1)]
        runs = [name for share in shares for name in share if not name.startswith("beginning")]
        assert sorted(runs) == sorted(run.name for run in sweep.runs)
        for share in shares:  # with what its runs begin with, in front of them
            for name in share:
                beginning = sweep.tasks[name].beginning
                assert beginning is None or share.index(beginning.task) < share.index(name)


def test_what_another_process_works_on_is_left_to_it(tmp_path: Path) -> None:
    from fedmr_merge.recipe.claims import Claims

    sweep = opened(write(tmp_path, METHODS, [0]), tmp_path / "out")
    sweep.prepare()
    with Claims(tmp_path / "out" / "claims") as others:
        assert all(others.take(name) for name in sweep.tasks)
        assert list(sweep.execute(1)) == [Skipped(name, "another process works on it") for name in sweep.tasks]


def test_what_a_dead_process_of_another_machine_claimed_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmr_merge.recipe.sweep._POLL_SECONDS", 0.05)
    sweep = opened(write(tmp_path, {"FedAvg": METHODS["FedAvg"]}, [0]), tmp_path / "out")
    sweep.prepare()
    claim = tmp_path / "out" / "claims" / "FedAvg_seed0.claim"
    claim.write_text("its owner\nanother machine")
    nearly_expired = claim.stat().st_mtime - EXPIRES_AFTER_SECONDS + 0.5
    os.utime(claim, (nearly_expired, nearly_expired))
    ended = [event for event in sweep.execute(1) if isinstance(event, Ended)]
    assert ended == [Ended("FedAvg_seed0")]


def test_only_runs_that_are_still_to_begin_need_their_beginning(tmp_path: Path) -> None:
    """One run is done already, and one was stopped before its first round, when they were asked for without others."""
    file, out = write(tmp_path, METHODS, [0]), tmp_path / "out"
    for method in METHODS:
        definition = read_sweep(file)
        alone = Sweep(definition, sweep_runs(definition, only=[method]), out)
        alone.prepare()
        [run] = alone.runs
        if method == "FedAvg":
            list(alone.execute(1))
        else:
            with Run(parse_recipe(run.recipe, run.name), out / "runs" / run.name):
                pass
    sweep = opened(file, out)
    assert sum(task.beginning is not None for task in sweep.tasks.values()) == 2
    sweep.prepare()
    told = list(sweep.execute(1))
    assert told[0] == Skipped("FedAvg_seed0", "done already")
    assert {event.name for event in told[1:]} == {"FedMR_seed0"}
    assert told[-1] == Ended("FedMR_seed0")


def test_beginnings_that_were_removed_are_run_again_for_a_new_run(tmp_path: Path) -> None:
    file, out = write(tmp_path, METHODS, [0]), tmp_path / "out"
    sweep = opened(file, out)
    sweep.prepare()
    list(sweep.execute(1))
    shutil.rmtree(out / "beginnings")
    later = {"FedProx": {"stages": [{"fedavg": {"rounds": 1}}, {"fedprox": {"rounds": 1}}]}}
    sweep = opened(write(tmp_path, METHODS | later, [0]), out)
    sweep.prepare()
    ended = [event for event in sweep.execute(1) if isinstance(event, Ended)]
    assert [event.fault for event in ended] == [None, None]
    assert ended[-1].name == "FedProx_seed0"


def test_processes_that_begin_at_the_same_time_describe_all_runs(tmp_path: Path) -> None:
    file, out = write(tmp_path, METHODS, [0]), tmp_path / "out"
    definition, names = read_sweep(file), set[str]()
    sweeps = [Sweep(definition, sweep_runs(definition, seeds=[seed]), out) for seed in range(8)]
    for sweep in sweeps:
        names |= {run.name for run in sweep.runs if sweep.tasks}
    (out / "claims").mkdir(parents=True)  # a process was killed when it had come so far
    with ThreadPoolExecutor(len(sweeps)) as pool:
        for done in [pool.submit(sweep.prepare) for sweep in sweeps]:
            done.result()
    assert set(read_sweep_folder(out).runs) == names


def test_what_a_user_should_know_of_a_run_is_reported_and_kept(tmp_path: Path) -> None:
    sweep = opened(write(tmp_path, {"FedAvg": METHODS["FedAvg"]}, [0]), tmp_path / "out")
    sweep.prepare()
    [run] = sweep.runs
    folder = tmp_path / "out" / "runs" / run.name
    with Run(parse_recipe(run.recipe, run.name), folder) as begun:
        next(begun.execute())
    environment = json.loads((folder / "environment.json").read_text())
    environment["packages"]["torch"] = "1.0"
    (folder / "environment.json").write_text(json.dumps(environment))
    [warned] = [event for event in sweep.execute(1) if isinstance(event, Warned)]
    assert warned.message.startswith("not as when the run began: torch: 1.0 → ")
    outcome = json.loads((tmp_path / "out" / "outcomes" / f"{run.name}.json").read_text())
    assert (outcome["done"], outcome["warnings"]) == (True, [warned.message])


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
    program = [sys.executable, "-m", "fedmr_merge", "sweep", str(file), "--jobs", "2", "--rounds", "450", "--out"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert subprocess.run([*program, str(whole)], check=False).returncode == 0
    draw = random.Random(0)
    kinds = [(os.killpg, signal.SIGKILL), (os.kill, signal.SIGKILL), (os.kill, signal.SIGTERM)]
    for number in range(20):
        with subprocess.Popen([*program, str(cut)], start_new_session=True) as process:
            time.sleep(draw.uniform(0.5, 12))
            assert process.poll() is None, f"done after {number} kills"
            kill, signal_number = kinds[number % 3]
            kill(process.pid, signal_number)
    assert subprocess.run([*program, str(cut)], check=False).returncode == 0
    assert comparison_csv(read_study([cut])) == comparison_csv(read_study([whole]))
