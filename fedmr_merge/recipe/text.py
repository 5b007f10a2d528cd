"""The text of a recipe, and the settings that change it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fedmr_merge.errors import RecipeError, RecipeFault, shown
from fedmr_merge.yaml_reader import MAX_CHARACTERS, YamlError, read_yaml

_INDEX = re.compile(r"[0-9]{1,9}")


def read_recipe_text(path: Path) -> Any:
    """Read a recipe file. Raises RecipeError when it is not there or not YAML."""
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(
            path, [RecipeFault("", f"cannot be read: {shown(reason)}")], hint="name a recipe, a YAML file"
        ) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Read YAML text; `source` is what messages call it. Raises RecipeError."""
    try:
        return read_yaml(text)
    except YamlError as error:
        place = f"line {error.line}" if error.line else ""
        hint = "the text is YAML: put a string that YAML would read otherwise into quotes"
        raise RecipeError(source, [RecipeFault(place, str(error))], hint=hint) from error


def apply_setting(raw: Any, setting: str) -> None:
    """Change a recipe in place as `--set PATH=VALUE` says, e.g. `training.lr=0.05` or `stages[1].fedmr.rounds=20`.

    Raises RecipeError when the path leads nowhere.
    """
    apply_value(raw, *parse_setting(setting))


def parse_setting(setting: str) -> tuple[str, Any]:
    """Return the path and the value of `PATH=VALUE`. Raises RecipeError when it is something else."""
    path, equals, text = setting.partition("=")
    if not equals or not _keys(path):
        raise RecipeError("--set", [RecipeFault(shown(setting), "write PATH=VALUE, e.g. training.lr=0.05")])
    return path, parse_yaml(text, f"--set {shown(path)}")


def _keys(path: str) -> list[int | str]:
    return [int(part) if _INDEX.fullmatch(part) else part for part in re.split(r"[.\[\]]+", path) if part]


def apply_value(raw: Any, path: str, value: Any) -> None:
    """Change a recipe in place: what `path` leads to becomes `value`. Raises RecipeError when it leads nowhere."""
    keys = _keys(path)
    place = raw
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(place, list):
            fits = isinstance(key, int) and key < len(place)
        else:
            fits = isinstance(place, dict) and isinstance(key, str)
        if not fits:
            raise RecipeError("--set", [RecipeFault(shown(path), f"there is no {shown(key)!r} here in the recipe")])
        if last:
            place[key] = value
        elif isinstance(place, dict):
            place = place.setdefault(key, {})
        else:
            place = place[key]
