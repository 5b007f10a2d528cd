"""The recipes that come with the package, and what a user may name instead of a recipe file."""

from __future__ import annotations

import difflib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedmr_merge.errors import RecipeError, RecipeFault
from fedmr_merge.resources import resource_folder
from fedmr_merge.runs.names import RECIPE
from fedmr_merge.yaml_reader import MAX_CHARACTERS

Kind = Literal["recipe", "sweep"]
_SUFFIX = ".yaml"
_LONGEST_NAME = 60  # that is compared with the names of recipes
_KEY = re.compile(r"^(axes|recipe|stages)\s*:", re.MULTILINE)
_FOLLOWS: dict[Kind, str] = {"recipe": "`fedmr-merge run {}` runs it", "sweep": "`fedmr-merge sweep {}` does its runs"}


@dataclass(frozen=True)
class ReadyMade:
    """A recipe, or a sweep of recipes, that comes with the package."""

    name: str  #: e.g. `digits` or `paper/cnn-cifar10`
    path: Path

    @property
    def is_sweep(self) -> bool:
        """Whether the file stands for many runs: `fedmr-merge sweep` follows it."""
        return _kind_of(self.path) == "sweep"

    @property
    def summary(self) -> str:
        """The first comment line of the file."""
        first = self.path.read_text(encoding="utf-8").partition("\n")[0]
        return first.lstrip("# ").rstrip() if first.startswith("#") else ""


def ready_made_recipes() -> list[ReadyMade]:
    """Return the recipes that come with the package, sorted by name, those in subfolders last."""
    folder = resource_folder("recipes")
    found = [
        ReadyMade(path.relative_to(folder).as_posix().removesuffix(_SUFFIX), path)
        for path in folder.rglob(f"*{_SUFFIX}")
    ]
    return sorted(found, key=lambda recipe: (recipe.name.count("/"), recipe.name))


def _by_name() -> dict[str, ReadyMade]:
    return {recipe.name: recipe for recipe in ready_made_recipes()}


def find_ready_made(name: str) -> ReadyMade:
    """Return the recipe of this name. Raises RecipeError when none of the package's recipes has it."""
    wanted, recipes = name.removesuffix(_SUFFIX), _by_name()
    if wanted in recipes:
        return recipes[wanted]
    near = difflib.get_close_matches(wanted[:_LONGEST_NAME], recipes, n=1)
    fault = "is neither a file, nor a run folder, nor the name of a recipe that comes with fedmr-merge"
    offer = f", did you mean {near[0]}?" if near else ""
    raise RecipeError(name, [RecipeFault("", fault + offer)], hint="`fedmr-merge recipes` lists the names")


def ready_made_text(name: str) -> str:
    """Return the text of a recipe of the package, or of a page beside the recipes such as `paper/README`.

    Raises RecipeError when neither has this name.
    """
    folder = resource_folder("recipes")
    pages = {path.relative_to(folder).as_posix().removesuffix(".md"): path for path in folder.rglob("*.md")}
    page = pages.get(name.removesuffix(".md"))
    return (page or find_ready_made(name).path).read_text(encoding="utf-8")


def ready_made_folder(name: str) -> Path | None:
    """Return the folder of recipes of this name, e.g. `paper`; None when there is no such folder."""
    folder = resource_folder("recipes")
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_dir()}
    return found.get(name.rstrip("/"))


@dataclass(frozen=True)
class Located:
    """A recipe that a user named: its file, and the run folder where the name was one."""

    path: Path
    run_folder: Path | None = None

    @property
    def code_folders(self) -> tuple[Path, ...]:
        """Where modules are looked for that the recipe names: beside the file, and in the current folder.

        A run folder holds no code: beside its recipe none is looked for, as the folder may come from elsewhere.
        """
        return (Path.cwd(),) if self.run_folder else (self.path.parent, Path.cwd())


def locate_recipe(named: str | Path) -> Located:
    """Find the recipe that a user named: a file, a run folder (its own recipe.yaml), or a recipe of the package.

    A file or a run folder wins over a recipe of the package, which wins over any other folder of its name. Raises
    RecipeError when there is nothing of this name, when a folder is not a run folder, and for a sweep.
    """
    located = _locate(named)
    _require_kind(located.path, "recipe", named)
    return located


def locate_sweep(named: str | Path) -> Path:
    """Find the sweep that a user named: a file, or a sweep of the package. Raises RecipeError, also for a recipe."""
    path = _locate(named).path
    _require_kind(path, "sweep", named)
    return path


def _require_kind(path: Path, wanted: Kind, named: str | Path) -> None:
    found = _kind_of(path)
    if found is not None and found != wanted:
        raise RecipeError(
            named,
            [RecipeFault("", f"is a {found}, not a {wanted}")],
            hint=_FOLLOWS[found].format(shlex.quote(str(named))),
        )


def _kind_of(path: Path) -> Kind | None:
    """Return whether a file is a recipe or a sweep, by its top-level keys; None where they are those of neither."""
    if not path.is_file():  # what comes through a pipe can be read only once
        return None
    try:
        with path.open(encoding="utf-8") as stream:
            keys = set(_KEY.findall(stream.read(MAX_CHARACTERS)))
    except (OSError, UnicodeError):  # which is reported when the file is read
        return None
    if "stages" in keys:
        return None if "axes" in keys else "recipe"
    return "sweep" if keys else None


def _locate(named: str | Path) -> Located:
    path = Path(named)
    if path.is_dir():
        if (path / RECIPE).is_file():
            return Located(path / RECIPE, path)
        if recipe := _by_name().get(str(named)):
            return Located(recipe.path)
        raise RecipeError(
            named,
            [RecipeFault("", f"is a folder without a {RECIPE}, so not a run folder")],
            hint="name a recipe file, a run folder, or one of `fedmr-merge recipes`",
        )
    if path.exists() or path.suffix in (_SUFFIX, ".yml"):
        return Located(path)
    return Located(find_ready_made(str(named)).path)
