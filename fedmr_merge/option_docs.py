"""What the options of a plug-in are, read from the fields of its dataclass: name, type, bounds, default, comment.

The comment is the `#:` at the end of the field's line, or the string below the field.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

_BOUNDS = {"Ge": "≥", "Gt": ">", "Le": "≤", "Lt": "<"}


@dataclass(frozen=True)
class OptionDoc:
    """One option."""

    name: str
    type: str  #: as a reader sees it, e.g. `int ≥ 1`
    default: str  #: as a recipe spells it; `required` where there is none
    doc: str  #: one line; empty where the field has no comment


def summary(cls: type[Any]) -> str:
    """Return the first paragraph of a class's docstring, in one line."""
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def describe_options(cls: type[Any]) -> list[OptionDoc]:
    """Return the options of a dataclass, those of its base classes included, in the order of its fields."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _comments(base)
    hints = get_type_hints(cls, include_extras=True)
    return [
        OptionDoc(field.name, _type(hints[field.name]), _default(field), docs.get(field.name, ""))
        for field in dataclasses.fields(cls)
    ]


def nested_options(cls: type[Any]) -> Iterator[tuple[str, type[Any]]]:
    """Yield each option of a dataclass whose value is a mapping of options, and the dataclass that has those."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        for hint in (hints[field.name], *get_args(hints[field.name])):
            if isinstance(hint, type) and dataclasses.is_dataclass(hint):
                yield field.name, hint


def _comments(cls: type[Any]) -> dict[str, str]:
    """Return the comment of every field that a class itself defines."""
    try:
        text = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # made while the program runs: its base has the source
        return {}
    lines, [tree] = text.splitlines(), ast.parse(text).body
    found: dict[str, str] = {}
    body = getattr(tree, "body", [])
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            of_field = lines[node.lineno - 1 : node.end_lineno]
            doc = " ".join(line.partition("#:")[2] for line in of_field).strip()
            if not doc and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                doc = str(after.value.value)
            found[node.target.id] = " ".join(doc.split())
    return found


def _type(hint: Any) -> str:
    """Return a type as people read it: `Annotated[int, Ge(1)] | None` is `int ≥ 1 or null`."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [_bound(bound) for bound in parts[1:] if type(bound).__name__ in _BOUNDS]
        return " ".join([_type(parts[0]), ", ".join(bounds)]).strip()
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, UnionType):
        return " or ".join(map(_type, parts))
    if origin in (tuple, list, Sequence):
        return f"list of {_type(parts[0])}"
    if origin is Mapping:
        return f"mapping of {_type(parts[0])} to {_type(parts[1])}"
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint, include_extras=True)
        return "{" + ", ".join(f"{field.name}: {_type(hints[field.name])}" for field in dataclasses.fields(hint)) + "}"
    return {type(None): "null", bool: "true | false", str: "string"}.get(hint) or str(getattr(hint, "__name__", hint))


def _bound(bound: Any) -> str:
    name = type(bound).__name__
    return f"{_BOUNDS[name]} {getattr(bound, name.lower())}"


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    return value if isinstance(value, str) else json.dumps(value, default=str)
