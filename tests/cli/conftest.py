"""A command line in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_checkpoints import model, write

from fedmr_merge.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command line in the temporary folder; returns its exit code, output and errors."""
    import gc

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gc, "disable", lambda: None)

    def command(*arguments: str) -> tuple[int, str, str]:
        try:
            main(list(arguments))
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    for i in range(3):
        write(tmp_path / "ckpts" / f"m{i}.safetensors", model(i))
    return [f"ckpts/m{i}.safetensors" for i in range(3)]
