"""The built-in rules that are rule files, in `rulesets/`."""

from __future__ import annotations

from importlib import resources

_FOLDER = resources.files(__package__).joinpath("rulesets")
_SUFFIX = ".yaml"


def rule_file_names() -> list[str]:
    """Return the names of these rules, sorted."""
    return sorted(file.name.removesuffix(_SUFFIX) for file in _FOLDER.iterdir() if file.name.endswith(_SUFFIX))


def read_built_in(name: str) -> str:
    """Return the text of the rule file of this name."""
    return _FOLDER.joinpath(f"{name}{_SUFFIX}").read_text(encoding="utf-8")
