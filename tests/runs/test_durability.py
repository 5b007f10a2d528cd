"""What a checkpoint vouches for is on the disk before it; a full disk loses nothing."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import small_runs
from small_runs import follow, models, recipe, stages

from fedmr_merge.errors import RunError


def test_the_logs_are_flushed_before_the_checkpoint_of_their_rounds_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, int | str]] = []
    fsync, rename = os.fsync, os.rename

    def flushed(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        order.append((path.name, path.read_text().count("\n") if path.suffix == ".jsonl" else path.name))
        fsync(descriptor)

    def renamed(source: Any, target: Any, **options: Any) -> None:
        order.append(("appears", Path(target).name))
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    follow(tmp_path / "run", recipe(stages=[{"fedmr": {"rounds": 2}}]))
    for round in (1, 2):
        here = order.index(("appears", f"1-fedmr-000{round}"))
        for name in ("metrics.jsonl", "lineage.jsonl"):
            assert any(lines >= round for found, lines in order[:here] if found == name and isinstance(lines, int))
        assert ("run", "run") in order[:here], "and so are their names"


def test_a_full_disk_says_what_is_saved_and_the_same_command_resumes(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the checkpoint after round 1 does not fit."""
    assert follow(tmp_path / "run", recipe(**stages(1))) == [1]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        with pytest.raises(RunError, match=r"run: the disk is full; rounds 1 to 1 are saved$") as caught:
            follow(tmp_path / "run", recipe(**stages(1, 1)), extend=True)
        assert "the same command" in str(caught.value.hint)
        with pytest.raises(RunError, match=r"new: the disk is full; no round is saved yet$"):
            follow(tmp_path / "new", recipe(**stages(1, 1)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert follow(tmp_path / "run", recipe(**stages(1, 1))) == [2]
    assert follow(tmp_path / "new", recipe(**stages(1, 1))) == [1, 2]
    assert models(tmp_path / "run") == models(tmp_path / "new")


def test_an_environment_of_other_packages_is_reported(tmp_path: Path) -> None:
    follow(tmp_path / "run", recipe(**stages(1)))
    file = tmp_path / "run" / "environment.json"
    environment = json.loads(file.read_text())
    file.write_text(json.dumps(environment | {"packages": {"torch": "1.0"}}))
    with small_runs.Run(recipe(**stages(1)), tmp_path / "run") as run:
        for change in ("torch: 1.0 → ", "numpy: absent → "):
            assert any(warning.startswith(f"not as when the run began: {change}") for warning in run.warnings())


def test_an_error_of_the_disk_says_what_is_saved_and_the_same_command_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert follow(tmp_path / "run", recipe(**stages(1))) == [1]

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(RunError, match=r"run: .*: Input/output error; rounds 1 to 1 are saved$") as caught:
            follow(tmp_path / "run", recipe(**stages(1, 1)), extend=True)
        assert "type the same command again" in str(caught.value.hint)
    assert follow(tmp_path / "run", recipe(**stages(1, 1)), extend=True) == [2]
