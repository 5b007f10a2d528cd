"""Damaged run folders: `run` names the damaged file, resumes from what is whole, or refuses; never a traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs
from small_run import command

from fedmr_merge.runs.names import find_checkpoints
from fedmr_merge.runs.resume import fork_run

NEWEST = "checkpoints/1-fedmr-0002"


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after round 2 of 3, with the checkpoints of rounds 1 and 2."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with small_runs.Run(small_runs.recipe(), folder) as run:
        events = run.execute()
        next(events), next(events)
        events.close()
    (folder.parent / "tiny.yaml").write_text(small_runs.recipe().to_yaml())
    return folder


@pytest.fixture
def folder(interrupted: Path, tmp_path: Path) -> Path:
    return small_runs.copied(interrupted, tmp_path / "run")


def run(folder: Path, interrupted: Path, *options: str) -> int:
    return command("run", interrupted.parent / "tiny.yaml", "--out", folder, *options)


def text(content: str | bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content) and None


def line(number: int, content: str | bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        lines = path.read_bytes().splitlines()
        lines[number - 1] = content.encode() if isinstance(content, str) else content
        path.write_bytes(b"".join(each + b"\n" for each in lines))

    return damage


def changed(**changes: Any) -> Callable[[Path], None]:
    """Change a JSON file."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes)) and None


def without(key: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        del content[key]
        path.write_text(json.dumps(content))

    return damage


def flipped(offset: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[offset] ^= 1
        path.write_bytes(content)

    return damage


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def renamed(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"fc1.bias"', b'"fc1.bios"'))


#: What everything of the run depends on: the command ends with exit code 2.
REFUSED = [
    ("recipe.yaml", text("[]"), "recipe.yaml: damaged: "),
    ("recipe.yaml", text("a: ["), "recipe.yaml: damaged: not YAML"),
    ("recipe.yaml", text(b"name: \xff"), "recipe.yaml: damaged: not "),
    ("recipe.yaml", text(""), "recipe.yaml: damaged: "),
    ("recipe.yaml", truncated, "recipe.yaml: damaged: "),
    ("recipe.yaml", folder_instead, "recipe.yaml: "),
    (
        "recipe.yaml",
        lambda p: text(p.read_text().replace("cnn", "cmm"))(p),
        "recipe.yaml: damaged: model.name: unknown",
    ),
    ("partition.json", truncated, "partition.json: damaged: not JSON"),
    ("partition.json", text("[1]"), "partition.json: damaged: Input should be"),
    ("partition.json", text(b"\xff\xfe"), "partition.json: damaged: not UTF-8"),
    ("partition.json", changed(format_version=9), "partition.json: damaged: format_version"),
    ("partition.json", changed(clients=[[0, 1], ["x"]]), "partition.json: damaged: clients.1.0"),
    ("partition.json", changed(clients=[[2**63]]), "partition.json: damaged: clients.0.0"),
    ("partition.json", changed(clients=[[0], [0]]), "partition.json: damaged: "),
    ("partition.json", changed(clients=[[], []]), "partition.json: damaged: "),
    ("partition.json", changed(class_counts=[[1]]), "partition.json: damaged: its counts"),
    ("partition.json", changed(class_counts=[[1] * 9]), "its counts are not a number for each of class_names"),
    ("partition.json", changed(clients=[[0]]), "its counts are not a row for every client"),
    ("partition.json", without("clients"), "partition.json: damaged: "),
    ("partition.json", Path.unlink, "partition.json: damaged: it is missing"),
    ("task.json", text("{}"), "task.json: damaged: format_version: Field required"),
    ("task.json", changed(metrics=[]), "task.json: damaged: metrics: List should have at least 1 item"),
    ("environment.json", text("{}"), "environment.json: damaged: fedmr_merge: Field required"),
    ("environment.json", changed(threads="many"), "environment.json: damaged: threads"),
    ("environment.json", changed(threads=10**9), "environment.json: damaged: threads"),
    ("environment.json", Path.unlink, "environment.json: damaged: it is missing"),
    ("metrics.jsonl", line(1, "5"), "metrics.jsonl: damaged: line 1"),
    ("metrics.jsonl", line(1, b"\xff"), "metrics.jsonl: damaged: line 1: not UTF-8"),
    ("metrics.jsonl", line(1, '{"round": "\\ud800"}'), "line 1: not JSON that can be read: it holds '\\ud800', which"),
    ("metrics.jsonl", line(1, "{}"), "metrics.jsonl: damaged: line 1: round"),
    ("metrics.jsonl", text(""), "metrics.jsonl: damaged: it holds 0 rounds"),
    ("metrics.jsonl", Path.unlink, "metrics.jsonl: damaged: it holds 0 rounds"),
    ("lineage.jsonl", line(1, "[]"), "lineage.jsonl: damaged: line 1"),
    (
        "lineage.jsonl",
        line(1, '{"round": 1, "stage": 1, "method": "fedmr"}'),
        "lineage.jsonl: damaged: line 1: clients",
    ),
    ("lineage.jsonl", folder_instead, "lineage.jsonl: damaged: cannot be read"),
]

#: Damage of the newest checkpoint, or of the logs after the one before: the run goes back to that one.
GOES_BACK = [
    (f"{NEWEST}/state.json", text("{"), "state.json: damaged: not JSON"),
    (f"{NEWEST}/state.json", text("[]"), "state.json: damaged: Input should be"),
    (f"{NEWEST}/state.json", changed(format_version=9), "state.json: damaged: format_version"),
    (f"{NEWEST}/state.json", changed(first_round=99), "state.json: damaged: first_round is 99"),
    (f"{NEWEST}/state.json", changed(slots=1), "state.json: damaged: it is not what the run wrote"),
    (f"{NEWEST}/state.json", changed(slots=10**9), "state.json: damaged: slots"),
    (f"{NEWEST}/state.json", changed(stage_over=True), "state.json: damaged: it is not what the run wrote"),
    (f"{NEWEST}/state.json", changed(facts=[]), "state.json: damaged: facts"),
    (f"{NEWEST}/state.json", changed(round=1), "state.json: damaged: round is 1"),
    (f"{NEWEST}/state.json", Path.unlink, "state.json: damaged: cannot be read"),
    (f"{NEWEST}/slot-01/model.safetensors", flipped(-1), "slot-01/model.safetensors: damaged: it is not what the run"),
    (f"{NEWEST}/slot-01/model.safetensors", flipped(9), "slot-01/model.safetensors: damaged: it is not what the run"),
    (f"{NEWEST}/slot-01/model.safetensors", renamed, "slot-01/model.safetensors: damaged: it is not what the run"),
    (f"{NEWEST}/slot-01/model.safetensors", truncated, "slot-01/model.safetensors: damaged: it is not what the run"),
    (f"{NEWEST}/slot-01/model.safetensors", Path.unlink, "slot-01/model.safetensors: damaged: it is missing"),
    (f"{NEWEST}/global/config.json", text("{}"), "global/config.json: damaged: it is not what the run wrote"),
    ("metrics.jsonl", line(2, "5"), "metrics.jsonl: damaged: line 2"),
    (
        "metrics.jsonl",
        truncated,
        "metrics.jsonl: damaged: it holds 1 round, the checkpoint 1-fedmr-0002 is of round 2",
    ),
    ("lineage.jsonl", line(2, "x"), "lineage.jsonl: damaged: line 2: not JSON"),
    (
        "lineage.jsonl",
        lambda p: p.write_bytes(p.read_bytes().splitlines(True)[0]),
        "lineage.jsonl: damaged: it holds 1",
    ),
]


@pytest.mark.parametrize(("name", "damage", "message"), REFUSED)
def test_a_damaged_file_is_named_and_nothing_is_written(
    folder: Path,
    interrupted: Path,
    name: str,
    damage: Callable[[Path], Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(folder / name)
    before = (sorted(folder.rglob("*")), find_checkpoints(folder / "checkpoints"))
    assert run(folder, interrupted) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert len(error) < 600
    assert hint.startswith("hint: ")
    assert (sorted(folder.rglob("*")), find_checkpoints(folder / "checkpoints")) == before


@pytest.mark.parametrize(("name", "damage", "message"), GOES_BACK)
def test_a_run_goes_back_to_what_is_whole(
    folder: Path, interrupted: Path, name: str, damage: Callable[[Path], Any], message: str
) -> None:
    damage(folder / name)
    with small_runs.Run(small_runs.recipe(), folder) as resumed:
        assert resumed.resumed_from is not None
        assert resumed.resumed_from.round == 1
        [note] = resumed.warnings()
        assert message in note
        assert note.endswith(": the run goes back to round 1")


@pytest.mark.parametrize("name", ["metrics.jsonl", "lineage.jsonl"])
def test_a_damaged_line_after_the_last_checkpoint_is_reported(
    folder: Path, interrupted: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / name).open("a") as stream:
        stream.write('{"round": 3, "st')  # cut off, as a kill leaves it
    with small_runs.Run(small_runs.recipe(), folder) as resumed:
        assert resumed.warnings() == [f"{folder / name}: its last line is cut off: the rounds after 2 are run again"]
    with (folder / name).open("a") as stream:
        stream.write("\n")
    assert run(folder, interrupted) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert f"{name}: damaged: line 3: not JSON" in warning
    assert warning.endswith(": the rounds after 2 are run again")
    small_runs.follow(tmp_path / "whole", small_runs.recipe())
    assert small_runs.models(folder) == small_runs.models(tmp_path / "whole")


def test_a_last_line_break_that_an_editor_took_away_joins_no_two_rounds(
    folder: Path, interrupted: Path, tmp_path: Path
) -> None:
    for name in ("metrics.jsonl", "lineage.jsonl"):
        (folder / name).write_bytes((folder / name).read_bytes().removesuffix(b"\n"))
    assert run(folder, interrupted) == 0
    for name in ("metrics.jsonl", "lineage.jsonl"):
        lines = (folder / name).read_text().splitlines()
        assert [json.loads(line)["round"] for line in lines] == list(range(1, len(lines) + 1))


def test_after_going_back_the_run_ends_with_the_same_bytes(folder: Path, interrupted: Path, tmp_path: Path) -> None:
    flipped(-1)(folder / NEWEST / "slot-00" / "model.safetensors")
    assert run(folder, interrupted) == 0
    small_runs.follow(tmp_path / "whole", small_runs.recipe())
    assert small_runs.models(folder) == small_runs.models(tmp_path / "whole")


def test_logs_that_lost_rounds_are_refused_where_no_checkpoint_has_them(folder: Path, interrupted: Path) -> None:
    """Cut to round 1 beside a checkpoint of round 2 alone: what it was made of cannot be said any more."""
    for name in ("metrics.jsonl", "lineage.jsonl"):
        path = folder / name
        path.write_bytes(path.read_bytes().splitlines(True)[0])
    for path in sorted((folder / "checkpoints" / "1-fedmr-0001").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "checkpoints" / "1-fedmr-0001").rmdir()
    assert run(folder, interrupted) == 2
    assert run(folder, interrupted, "--fresh") == 0


def test_a_fork_begins_where_the_other_run_was(interrupted: Path, tmp_path: Path) -> None:
    fork_run(interrupted, 1, tmp_path / "fork", small_runs.recipe().to_yaml())
    assert small_runs.follow(tmp_path / "fork", small_runs.recipe()) == [2, 3]
    assert small_runs.follow(tmp_path / "whole", small_runs.recipe()) == [1, 2, 3]
    assert small_runs.models(tmp_path / "fork") == small_runs.models(tmp_path / "whole")
    assert len((interrupted / "metrics.jsonl").read_text().splitlines()) == 2, "the source is as it was"


def test_a_fork_needs_a_whole_checkpoint_of_its_round(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="has no checkpoint of round 7") as caught:
        fork_run(folder, 7, tmp_path / "fork", "")
    assert caught.value.hint == "it has checkpoints of these rounds: 1, 2"  # type: ignore[attr-defined]
    flipped(-1)(folder / NEWEST / "slot-00" / "model.safetensors")
    with pytest.raises(Exception, match="it is not what the run wrote"):
        fork_run(folder, 2, tmp_path / "fork", "")
    assert not (tmp_path / "fork").exists()
