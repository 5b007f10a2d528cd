"""The logs of a run: which lines count, which are damage, and how a log is cut back to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmr_merge.errors import RunError
from fedmr_merge.runs.logs import (
    cut_log,
    cut_to_round,
    has_cut_off_line,
    read_log,
    read_log_prefix,
    read_object,
    read_state,
    require_rounds,
)
from fedmr_merge.runs.names import LINEAGE, METRICS, PARTITION, Place


def metrics(round: int, stage: int = 1, method: str = "fedavg") -> str:
    return json.dumps({"round": round, "stage": stage, "method": method, "seconds": 0.5})


def lineage(round: int, stage: int = 1, method: str = "fedavg") -> str:
    return json.dumps({"round": round, "stage": stage, "method": method, "clients": [0, 1], "plan": None})


def write(folder: Path, *lines: str, name: str = METRICS) -> Path:
    (folder / name).write_text("\n".join(lines))
    return folder / name


def test_every_line_is_a_round(tmp_path: Path) -> None:
    assert read_log(tmp_path, METRICS) == []
    write(tmp_path, metrics(1), metrics(2), "")
    assert [line["round"] for line in read_log(tmp_path, METRICS)] == [1, 2]


@pytest.mark.parametrize("rest", [metrics(3)[:-5], "{", '"', metrics(3)[:1]])
def test_a_last_line_that_is_cut_off_is_left_out(rest: str, tmp_path: Path) -> None:
    write(tmp_path, metrics(1), metrics(2), rest)
    assert [line["round"] for line in read_log(tmp_path, METRICS)] == [1, 2]
    assert has_cut_off_line(tmp_path, METRICS)


def test_a_whole_last_line_without_a_line_break_counts(tmp_path: Path) -> None:
    write(tmp_path, metrics(1), metrics(2))
    assert [line["round"] for line in read_log(tmp_path, METRICS)] == [1, 2]
    assert not has_cut_off_line(tmp_path, METRICS)
    assert not has_cut_off_line(tmp_path, LINEAGE)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "line 2: not JSON: Expecting property name enclosed in double quotes at character 1"),
        (metrics(3), "line 2: round 3 stands where round 2 is expected"),
        (metrics(2).replace("0.5", "-1"), "line 2: seconds: "),
        (metrics(2).replace("fedavg", "\\ud800"), "which is half of a character"),
        ("[" * 100_000, "line 2: not JSON that can be read: nested too deeply"),
    ],
    ids=["cut off", "another round", "a value", "half of a character", "nested"],
)
def test_a_damaged_line_is_named_and_ends_what_is_read(line: str, fault: str, tmp_path: Path) -> None:
    path = write(tmp_path, metrics(1), line, metrics(3), "")
    found, error = read_log_prefix(tmp_path, METRICS)
    assert [entry["round"] for entry in found] == [1]
    assert str(error).startswith(f"{path}: damaged: line 2: ")
    assert fault in str(error)
    with pytest.raises(RunError) as caught:
        read_log(tmp_path, METRICS)
    assert caught.value.path == str(path)
    assert caught.value.hint == "restore the file, or start anew with --fresh"


def test_a_log_is_cut_after_a_round(tmp_path: Path) -> None:
    path = write(tmp_path, metrics(1), metrics(2), metrics(3)[:9])
    cut_log(tmp_path, METRICS, 2)
    assert path.read_text() == f"{metrics(1)}\n{metrics(2)}\n"
    cut_log(tmp_path, METRICS, 5)
    assert path.read_text() == f"{metrics(1)}\n{metrics(2)}\n"
    cut_log(tmp_path, METRICS, 0)
    assert path.read_text() == ""
    cut_log(tmp_path, LINEAGE, 1)
    assert not (tmp_path / LINEAGE).exists()


def test_a_line_break_that_an_editor_took_away_is_written_again(tmp_path: Path) -> None:
    path = write(tmp_path, metrics(1), metrics(2))
    cut_log(tmp_path, METRICS, 2)
    assert path.read_text() == f"{metrics(1)}\n{metrics(2)}\n"


def test_a_log_without_a_line_for_every_round_is_cut_by_what_its_lines_say(tmp_path: Path) -> None:
    path = write(tmp_path, '{"round": 2}', "no JSON", '{"round": 7}', '{"round": 5}', '{"round": 4')
    cut_to_round(tmp_path, path.name, 5)
    assert path.read_text() == '{"round": 2}\n{"round": 5}\n'
    cut_to_round(tmp_path, "absent.jsonl", 5)


def test_both_logs_must_hold_every_round_of_a_checkpoint(tmp_path: Path) -> None:
    rounds = [(1, 1, "fedavg"), (2, 2, "fedmr"), (3, 2, "fedmr")]
    write(tmp_path, *(metrics(*each) for each in rounds), "")
    write(tmp_path, *(lineage(*each) for each in rounds), "", name=LINEAGE)
    require_rounds(tmp_path, Place(3, 1, "fedmr"), first_round=2)
    require_rounds(tmp_path, Place(1, 0, "fedavg"), first_round=1)
    for place, first_round, fault in (
        (Place(4, 1, "fedmr"), 2, "it holds 3 rounds, the checkpoint 2-fedmr-0004 is of round 4"),
        (Place(3, 1, "fedprox"), 2, "line 3: stage 2 of 'fedmr', the checkpoint is 2-fedprox-0003"),
        (Place(3, 0, "fedmr"), 2, "line 3: stage 2 of 'fedmr', the checkpoint is 1-fedmr-0003"),
        (Place(3, 1, "fedmr"), 3, "stage 2 begins in round 2, the checkpoint 2-fedmr-0003 says 3"),
    ):
        with pytest.raises(RunError, match=fault):
            require_rounds(tmp_path, place, first_round)
    write(tmp_path, lineage(1), "", name=LINEAGE)
    with pytest.raises(RunError, match=rf"{LINEAGE}: damaged: it holds 1 round, the checkpoint"):
        require_rounds(tmp_path, Place(3, 1, "fedmr"), first_round=2)


def test_other_files_are_absent_or_whole(tmp_path: Path) -> None:
    assert read_object(tmp_path, PARTITION) is None
    (tmp_path / PARTITION).write_bytes(b"\xff")
    with pytest.raises(RunError, match=rf"{PARTITION}: damaged: not UTF-8 at byte 0"):
        read_object(tmp_path, PARTITION)
    with pytest.raises(RunError, match=r"state\.json: damaged: cannot be read: No such file"):
        read_state(tmp_path)
