"""Recipe YAML as people write it: no key twice, and `1e-3` is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fedmr_merge.errors import RecipeError, RecipeFault


class _Loader(yaml.SafeLoader):
    """YAML 1.1's safe loader, with YAML 1.2's floats, and duplicate keys refused: the first would be lost without
    a word.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands here twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+\Z"), list("-+.0123456789")
)


def read_recipe_text(path: Path) -> Any:
    """Read a recipe file. Raises RecipeError when it is not there or not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(
            path, [RecipeFault("", f"cannot be read: {reason}")], hint="name a recipe, a YAML file"
        ) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Read YAML text; `source` is what messages call it. Raises RecipeError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}" if mark else ""
        raise RecipeError(source, [RecipeFault(place, f"{getattr(error, 'problem', error)}")]) from error


def apply_setting(raw: Any, setting: str) -> None:
    """Change a recipe in place as `--set PATH=VALUE` says, e.g. `training.lr=0.05` or `stages[1].fedmr.rounds=20`.

    Raises RecipeError when the path leads nowhere.
    """
    apply_value(raw, *parse_setting(setting))


def parse_setting(setting: str) -> tuple[str, Any]:
    """Return the path and the value of `PATH=VALUE`. Raises RecipeError when it is something else."""
    path, equals, text = setting.partition("=")
    if not equals or not _keys(path):
        raise RecipeError("--set", [RecipeFault(setting, "write PATH=VALUE, e.g. training.lr=0.05")])
    return path, parse_yaml(text, f"--set {path}")


def _keys(path: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"[.\[\]]+", path) if part]


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
            raise RecipeError("--set", [RecipeFault(path, f"there is no {key!r} here in the recipe")])
        if last:
            place[key] = value
        elif isinstance(place, dict):
            place = place.setdefault(key, {})
        else:
            place = place[key]
