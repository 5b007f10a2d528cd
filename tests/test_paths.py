from __future__ import annotations

from pathlib import Path

import pytest

from fedmr_merge.cli import main
from fedmr_merge.paths import home_expanded


def test_only_what_begins_with_a_user_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert home_expanded("~/data") == Path("/somewhere/data")
    assert home_expanded("data/~") == Path("data/~")
    assert home_expanded("~no-such-user/data") == Path("~no-such-user/data")


def test_a_user_that_there_is_not_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        "name: x\ndata: {name: digits, partition: {kind: file, path: ~no-such-user/parts.json}}\n"
        "model: {name: cnn}\nstages: [{fedavg: {rounds: 1}}]\n"
    )
    with pytest.raises(SystemExit) as stopped:
        main(["run", "recipe.yaml", "--out", "out"])
    assert stopped.value.code == 2
    assert "~no-such-user/parts.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
