"""The size of modules and functions, the tests' tree, and what git ignores."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedmr_merge"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST_MODULE = 350
LONGEST_FUNCTION = 60

#: Folders of tests whose subject is not one folder of the package.
OTHER_SUBJECTS = {"docs", "ecosystem", "recipes", "torture"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST_MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, f"{node.name} is too long"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_and_public_functions_have_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.name != "__main__.py":
        assert ast.get_docstring(tree), "the module"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_tests_mirror_the_package() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    for folder in sorted(folders):
        if folder.parts and folder.parts[0] not in OTHER_SUBJECTS:
            assert (PACKAGE / folder / "__init__.py").is_file(), f"tests/{folder} has no counterpart"
    modules = {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/_", "/") for path in MODULES}
    names = {module.rpartition("/")[2] for module in modules}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tested = path.parent.relative_to(ROOT / "tests") / path.stem.removeprefix("test_")
        if tested.parts[0] not in OTHER_SUBJECTS and tested.name in names:
            assert tested.as_posix() in modules, f"{path.name} has the name of a module of another folder"
    for path in sorted(PACKAGE.rglob("__init__.py")):
        assert path.parent.relative_to(PACKAGE) in folders, f"{path.parent} has no folder of tests"


def test_every_module_is_imported_by_a_test_or_by_a_module_that_is() -> None:
    """A module without a test file of its own is an inner one: another module of its room uses it."""
    used: set[str] = set()
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                used |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
    plugins = ("algorithms", "datasets", "models", "partitions", "tasks")
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.stem not in ("__init__", "__main__") and path.parent.name not in plugins:
            assert name in used, f"nothing uses {name}"


@pytest.mark.parametrize("room", ["layers", "recombination"])
def test_the_readme_says_a_sentence_about_each_file_of_the_two_core_rooms(room: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(rf"^  {room}/ .*\n((?:    .*\n)*)", readme, flags=re.MULTILINE)
    assert tree
    described = dict(re.findall(r"^    (\S+) +(\S.*)$", tree[1], flags=re.MULTILINE))
    parts = (path for path in (PACKAGE / room).iterdir() if not path.name.startswith("__"))
    assert described.keys() == {path.name + "/" * path.is_dir() for path in parts}


def test_git_ignores_no_file_of_the_repository() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = ["git", "ls-files", "--cached", "--ignored", "--exclude-per-directory=.gitignore"]
    assert subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""
    # Nor would it ignore a new file beside any of them, however the user's own git is configured.
    beside = [str(folder / "new.py") for folder in sorted({path.parent for path in MODULES})]
    asked = ["git", "-c", "core.excludesFile=/dev/null", "check-ignore", *beside]
    assert subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout == ""
