"""Reading a run folder from outside: tolerant of a kill, strict about damage, and light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedmr_merge.errors import RunError
from fedmr_merge.runs.names import Place, find_checkpoints, is_of_a_run
from fedmr_merge.runs.record import read_run

RECIPE = """
name: small
seed: 0
data: {name: digits}
model: {name: cnn}
training: {}
stages: [{fedmr: {rounds: 3}}]
"""


def line(round: int, **changes: Any) -> str:
    content = {"round": round, "stage": 1, "method": "fedmr", "test_accuracy": 0.5, "seconds": 1.0}
    return json.dumps(content | changes) + "\n"


def write_run(folder: Path, metrics: str) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "metrics.jsonl").write_text(metrics)
    return folder


@pytest.mark.parametrize("torn", ["", "{", '{"round": 3, "st', line(3)[:-2], "\x00\x00"])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path, torn: str) -> None:
    run = read_run(write_run(tmp_path / "run", line(1) + line(2) + torn))
    assert [found["round"] for found in run.metrics] == [1, 2]


@pytest.mark.parametrize(
    ("stages", "done", "is_finished"),
    [
        ("[{fedmr: {rounds: 2}}, {evaluate: {}}]", [1, 0], False),
        ("[{fedmr: {rounds: 2}}, {evaluate: {}}]", [2, 0], True),
        ("[{fedavg: {rounds: 2}}, {fedmr: {rounds: 2}}]", [2, 1], False),
        ("[{fedavg: {rounds: 9, until: {plateau: {}}}}, {fedmr: {rounds: 2}}]", [2, 2], True),
        ("[{fedavg: {rounds: 9, until: {plateau: {}}}}, {fedmr: {rounds: 2}}]", [2, 0], False),
        ("[{fedavg: {rounds: 2}}, {fedmr: {rounds: 9, until: {plateau: {}}}}]", [2, 0], False),
        ("[{fedavg: {rounds: 2}}, {fedmr: {rounds: 9, until: {plateau: {}}}}]", [2, 9], True),
    ],
)
def test_a_run_is_finished_with_the_last_round_of_its_last_training_stage(
    tmp_path: Path, stages: str, done: list[int], is_finished: bool
) -> None:
    recorded = [stage for stage, rounds in enumerate(done, start=1) for _ in range(rounds)]
    folder = write_run(tmp_path / "run", "".join(line(i, stage=stage) for i, stage in enumerate(recorded, start=1)))
    (folder / "recipe.yaml").write_text(RECIPE.replace("[{fedmr: {rounds: 3}}]", stages))
    assert read_run(folder).is_finished is is_finished


def test_the_checkpoint_of_another_stage_does_not_finish_a_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", line(1) + line(2, stage=2))
    stages = "[{fedavg: {rounds: 1}}, {fedmr: {rounds: 9, until: {plateau: {}}}}]"
    (folder / "recipe.yaml").write_text(RECIPE.replace("[{fedmr: {rounds: 3}}]", stages))
    assert read_run(folder).is_finished, "what is published has no checkpoints"
    (folder / "checkpoints" / "1-fedavg-0001").mkdir(parents=True)
    assert not read_run(folder).is_finished
    (folder / "checkpoints" / "2-fedmr-0002").mkdir()
    assert not read_run(folder).is_finished, "the last checkpoint is damaged"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (line(1) + "5\n" + line(3), r"metrics\.jsonl: damaged: line 2: Input should be a valid dictionary.*found 5"),
        (line(1) + line(2)[:9] + "\n", r"line 2: not JSON"),
        (line(1) + line(3), r"line 2: round 3 stands where round 2 is expected"),
        (line(1) + line(1), r"line 2: round 1 stands where round 2 is expected"),
        (line(1, test_accuracy=float("nan")), r"line 1: test_accuracy"),
        (line(1, test_accuracy="high"), r"line 1: test_accuracy.*found 'high'"),
        (line(1, method="x" * 9999 + "y", stage="1"), r"line 1: stage"),
        (line(1, stage=10**30), r"line 1: stage"),
        ("[" * 100_000 + "\n", r"line 1: not JSON"),
    ],
)
def test_any_other_damaged_line_is_named(tmp_path: Path, metrics: str, message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        _ = read_run(write_run(tmp_path / "run", metrics)).metrics
    assert len(str(caught.value)) < 500


def test_a_log_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "")
    (folder / "metrics.jsonl").write_bytes(line(1).encode() + b'{"round": "\xff"}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl: damaged: line 2: not UTF-8 at byte 11"):
        _ = read_run(folder).metrics


def test_files_that_a_run_lacks_are_empty(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", ""))
    assert (run.metrics, run.lineage, run.partition, run.environment, run.checkpoints) == ([], [], None, None, [])


def test_checkpoints_are_sorted_by_round(tmp_path: Path) -> None:
    for name in ("1-fedavg-9999", "2-fedmr-10000", "2-fedmr-10001", ".2-fedmr-10002.staging-1", "notes"):
        (tmp_path / name).mkdir()
    assert [place.folder for place in find_checkpoints(tmp_path)] == ["1-fedavg-9999", "2-fedmr-10000", "2-fedmr-10001"]
    assert find_checkpoints(tmp_path)[0] == Place(round=9999, stage=0, method="fedavg")


def test_what_a_run_writes_is_known_by_name() -> None:
    assert all(map(is_of_a_run, ("recipe.yaml", "checkpoints", ".lock", ".partition.json.abc", ".global-new")))
    assert not any(map(is_of_a_run, ("thesis.txt", ".env", "recipe.yml")))


def test_reading_a_run_needs_no_torch() -> None:
    program = "import sys; import fedmr_merge.runs.record; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
