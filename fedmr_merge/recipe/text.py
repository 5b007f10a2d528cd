"""The text of a recipe, and the settings that change it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fedmr_merge.errors import RecipeError, RecipeFault, shown
from fedmr_merge.yaml_reader import MAX_CHARACTERS, YamlError, read_yaml

_INDEX = re.compile(r"[0-9]{1,9}")
_SEPARATORS = ".[]"  # of the keys of a path


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
    if not equals or not path.strip(_SEPARATORS):
        raise RecipeError("--set", [RecipeFault(shown(setting), "write PATH=VALUE, e.g. training.lr=0.05")])
    return path, parse_yaml(text, f"--set {shown(path)}")


def apply_value(raw: Any, path: str, value: Any) -> None:
    """Change a recipe in place: what `path` leads to becomes `value`. Raises RecipeError when it leads nowhere.

    On the way, mappings are made where there is nothing, or null, which stands for no options.
    """
    place, rest = raw, path.strip(_SEPARATORS)
    while True:
        key, rest = _next_key(place, rest)
        fits = isinstance(place, dict) or (isinstance(place, list) and isinstance(key, int) and key < len(place))
        if not fits:
            fault = RecipeFault(shown(path), f"there is no {shown(str(key))!r} here in the recipe")
            raise RecipeError("--set", [fault])
        if not rest:
            place[key] = value
            return
        if isinstance(place, dict) and place.get(key) is None:
            place[key] = {}
        place = place[key]


def _next_key(place: Any, path: str) -> tuple[int | str, str]:
    """Return the first key of a path and the path behind it.

    A key of the mapping that the path begins with counts before its parts, as an import path has dots.
    """
    keys = [key for key in place if isinstance(key, str)] if isinstance(place, dict) else []
    found = max((key for key in keys if key and re.match(rf"{re.escape(key)}([.[]|\Z)", path)), key=len, default=None)
    key = re.split(r"[.\[\]]", path, maxsplit=1)[0] if found is None else found
    rest = path[len(key) :].strip(_SEPARATORS)
    return (int(key) if isinstance(place, list) and _INDEX.fullmatch(key) else key), rest
