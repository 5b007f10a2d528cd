"""A trained model of another library is found where the recipe says."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmr_merge.federated.models._pretrained import open_base


def test_a_folder_of_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")
    found = open_base("~/bert", weights=False)
    assert (found.name, found.folder) == ("~/bert", tmp_path / "bert")
