"""What is installed: the wheel holds the cards, recipes and pages; so does one that is built from the sdist."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WANTED = (
    "cards/global.md.j2",
    "recipes/digits.yaml",
    "recipes/paper/README.md",
    "recipes/paper/cnn-cifar10.yaml",
    "recipes/paper/table1.csv",
    "docs/recombine.md",
    "py.typed",
)


def build(source: Path, kind: str, target: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (found,) = target.iterdir()
    return found


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))) as archive:
        if hasattr(tarfile, "data_filter"):  # the first releases of Python 3.10 and 3.11 do not have it
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(unpacked)
    (folder,) = unpacked.iterdir()
    return folder


@pytest.mark.parametrize("from_sdist", [False, True])
def test_a_wheel_holds_what_the_program_needs(from_sdist: bool, sdist: Path, tmp_path: Path) -> None:
    wheel = build(sdist if from_sdist else ROOT, "wheel", tmp_path / "dist")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in WANTED:
        assert f"fedmr_merge/{wanted}" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "recipes/", "cards/"))]


def test_the_installed_package_works_outside_the_repository(sdist: Path, tmp_path: Path) -> None:
    wheel = build(sdist, "wheel", tmp_path / "dist")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    for arguments, words in (
        (["recipes"], "digits"),
        (["docs", "train"], "# "),
        (["recipes", "show", "digits"], "name:"),
        (["recipes", "show", "paper/README"], "# The experiments"),
    ):
        command = [sys.executable, "-m", "fedmr_merge", *arguments]
        environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": ""}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout


def test_every_direct_dependency_is_pinned() -> None:
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    flower = extras.pop("flower")  # asks for other versions of what the command line uses
    for file, lines in {
        "constraints.txt": sum(extras.values(), project["dependencies"]),
        "constraints-flower.txt": flower,
    }.items():
        wanted = {
            re.split(r"[^\w-]", line)[0].lower().replace("_", "-")
            for line in lines
            if not line.startswith("fedmr-merge[")
        }
        pinned = re.findall(r"^([\w-]+)==", (ROOT / file).read_text(), flags=re.MULTILINE)
        assert wanted <= {name.lower().replace("_", "-") for name in pinned}
