"""The script that puts the figures of the torture tests into docs/reliability.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import reliability
from generated import fill

PART = {"section": "mutated files", "kind": "plans", "slowest_seconds": 0.5, "processor_seconds": 60.0}


def write(folder: Path, name: str, **figures: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(PART | {"failures": []} | figures))


def test_parts_are_added_up_and_the_same_attempts_count_once(tmp_path: Path) -> None:
    write(tmp_path / "a", "1", numbers=[0, 1, 2], accepted=1, refused=1, failures=["plans @2: x"])
    write(tmp_path / "b", "2", numbers=[3, 4], accepted=2, refused=0, slowest_seconds=2.5)
    write(tmp_path / "b", "3", numbers=[1, 2], accepted=1, refused=1)  # again
    found = reliability.read([tmp_path / "a", tmp_path / "b"])
    assert reliability.table(found, "mutated files").splitlines()[2:] == [
        "| plans | 5 | 3 | 1 | 1 | 2.5 s |",
        "| **all** | 5 | 3 | 1 | 1 | 2.5 s |",
    ]
    write(tmp_path / "b", "4", numbers=[4, 5], accepted=2, refused=0)
    with pytest.raises(SystemExit, match="some of its attempts are in another file"):
        reliability.read([tmp_path / "a", tmp_path / "b"])


def test_faults_are_a_row_for_each_command(tmp_path: Path) -> None:
    write(tmp_path, "1", section="faults: kill", kind="run", numbers=[0, 1], accepted=2, refused=0)
    write(tmp_path, "2", section="faults: full", kind="run", numbers=[0], accepted=0, refused=1)
    write(tmp_path, "3", section="faults: full", kind="report", numbers=[0], accepted=0, refused=0, failures=["x"])
    assert reliability.fault_table(reliability.read([tmp_path])).splitlines() == [
        "| command | kill | full |",
        "| --- | ---: | ---: |",
        "| `run` | 2 (0) | 1 (0) |",
        "| `report` | 0 (0) | 1 (1) |",
        "| **all** | 2 (0) | 2 (1) |",
        "",
        "2 of these are kills by SIGKILL.",
    ]


def test_the_page_has_a_place_for_every_table() -> None:
    page = reliability.PAGE.read_text(encoding="utf-8")
    for name in ("mutated files", "faults"):
        assert "a table" in fill(page, name, "a table\n")
    with pytest.raises(SystemExit, match="no place for the figures of nothing"):
        fill("# Nothing\n", "nothing", "")
