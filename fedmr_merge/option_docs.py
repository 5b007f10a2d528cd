"""What the options of a plug-in are, read from the fields of its dataclass: name, type, bounds, default, comment.

The comment is the `#:` at the end of the field's line, or the string below the field.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from dataclasses import dataclass
from typing import Any

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
    written: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            written |= _fields_in_source(base)
    found = []
    for field in dataclasses.fields(cls):
        type_, doc = written.get(field.name, (str(field.type), ""))
        found.append(OptionDoc(field.name, type_, _default(field), doc))
    return found


def _fields_in_source(cls: type[Any]) -> dict[str, tuple[str, str]]:
    """Return the type and the comment of every field that a class itself defines."""
    try:
        text = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # made while the program runs: its base has the source
        return {}
    lines, [tree] = text.splitlines(), ast.parse(text).body
    found: dict[str, tuple[str, str]] = {}
    body = getattr(tree, "body", [])
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            of_field = lines[node.lineno - 1 : node.end_lineno]
            doc = " ".join(line.partition("#:")[2] for line in of_field).strip()
            if not doc and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                doc = str(after.value.value)
            found[node.target.id] = (_type(node.annotation), " ".join(doc.split()))
    return found


def _type(node: ast.expr) -> str:
    """Return an annotation as people read it: `Annotated[int, Ge(1)] | None` is `int ≥ 1 or null`."""
    if isinstance(node, ast.BinOp):
        return f"{_type(node.left)} or {_type(node.right)}"
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id == "Annotated":
            bounds = [
                f"{_BOUNDS[bound.func.id]} {ast.unparse(bound.args[0])}"
                for bound in parts[1:]
                if isinstance(bound, ast.Call) and isinstance(bound.func, ast.Name) and bound.func.id in _BOUNDS
            ]
            return " ".join([_type(parts[0]), ", ".join(bounds)]).strip()
        if node.value.id == "Literal":
            return " | ".join(str(part.value) for part in parts if isinstance(part, ast.Constant))
        if node.value.id == "tuple":
            return f"list of {_type(parts[0])}"
    text = ast.unparse(node)
    return {"None": "null", "bool": "true | false", "str": "string"}.get(text, text)


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    return value if isinstance(value, str) else json.dumps(value, default=str)
