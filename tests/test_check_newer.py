"""The report on newer versions of the dependencies names what breaks something, or says that nothing can be said."""

from __future__ import annotations

import json
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "check_newer"
NEWER = {"numpy": "9.0", "torch": "8.0"}


@pytest.fixture(scope="module")
def check_newer() -> ModuleType:
    loader = SourceFileLoader("check_newer", str(SCRIPT))
    spec = spec_from_loader("check_newer", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


class Stand:
    """Stands for the environment: what comes of the newer versions that are installed in it, by their names."""

    def __init__(self, **outcomes: str) -> None:
        self._outcomes, self.pinned = outcomes, 0

    def pin(self) -> None:
        self.pinned += 1

    def outcome(self, versions: dict[str, str], held: list[str], tests: list[str]) -> str:
        return self._outcomes.get("_".join(sorted(versions)) or "none", "passes")


@pytest.mark.parametrize(
    ("outcomes", "code", "lines"),
    [
        ({}, 0, ["numpy 9.0: passes", "torch 8.0: passes"]),
        (
            {"numpy_torch": "fails the tests", "torch": "fails the tests"},
            1,
            ["numpy 9.0: passes", "torch 8.0: fails the tests"],
        ),
        (
            {"numpy_torch": "cannot be installed beside the others", "numpy": "cannot be installed beside the others"},
            1,
            ["numpy 9.0: cannot be installed beside the others", "torch 8.0: passes"],
        ),
        (
            {"numpy_torch": "fails the tests"},
            1,
            ["numpy 9.0: passes", "torch 8.0: passes", "each of them passes alone; together: fails the tests"],
        ),
        (
            {"numpy_torch": "fails the tests", "none": "fails the tests"},
            2,
            ["nothing can be said: with the pinned versions it fails the tests too"],
        ),
    ],
)
def test_what_breaks_something_is_named(
    outcomes: dict[str, str], code: int, lines: list[str], check_newer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    stand = Stand(**outcomes)
    assert check_newer.report(stand, NEWER, [], []) == code
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "trying numpy 9.0, torch 8.0"
    assert said[-len(lines) :] == lines
    assert stand.pinned == {0: 0, 1: 3, 2: 1}[code]  # each is tried beside the pinned versions


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--hold", "torch", "nump"], "--hold nump: not in constraints.txt"),
        (["--tests", "tests/nowhere"], "--tests tests/nowhere: no such file or folder in the repository"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    arguments: list[str], line: str, check_newer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        check_newer.options(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {line}")


def test_what_pip_lists_is_read(check_newer: ModuleType) -> None:
    pytest.importorskip("pip")
    environment = check_newer.Environment.__new__(check_newer.Environment)  # without making one
    environment.python = sys.executable
    assert "numpy" in {package["name"] for package in json.loads(environment.pip("list", "--format", "json"))}


def test_what_is_held_stays_as_it_is_pinned(check_newer: ModuleType) -> None:
    (line,) = check_newer.held(["Torch"])
    assert line.startswith("torch==")
    assert {"torch", "numpy", "transformers"} <= set(check_newer.pinned())
