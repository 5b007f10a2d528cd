"""Which entries of a folder are a run's, and where it can be resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmr_merge.runs.names import Place, find_checkpoints, is_of_a_run, is_staged


def test_checkpoints_are_found_oldest_first_and_other_folders_are_passed_over(tmp_path: Path) -> None:
    for name in ("2-fedmr-0010", "1-fedavg-0009", "2-fedmr-12345", ".2-fedmr-0011.staging-0123456789abcdef", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "2-fedmr-0012").write_text("a file, not a folder")
    places = find_checkpoints(tmp_path)
    assert places == [Place(9, 0, "fedavg"), Place(10, 1, "fedmr"), Place(12345, 1, "fedmr")]
    assert [place.folder for place in places] == ["1-fedavg-0009", "2-fedmr-0010", "2-fedmr-12345"]
    assert find_checkpoints(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("name", "of_a_run", "staged"),
    [
        ("metrics.jsonl", True, False),
        ("global", True, False),
        (".recipe.yaml.staging-0123456789abcdef", True, True),
        (".global-new", True, True),
        (".replaced", True, False),
        ("thesis.txt", False, False),
        (".thesis.txt.staging-0123456789abcdef", False, False),
        (".git", False, False),
    ],
)
def test_what_a_run_writes_and_what_a_killed_one_left(name: str, of_a_run: bool, staged: bool) -> None:
    assert is_of_a_run(name) == of_a_run
    assert is_staged(name) == staged
