"""Read YAML that people wrote, as plain values of bounded size: mappings, lists, strings, numbers, booleans and null.

No other type is built. Dates are strings; no key may come twice, as the first would be lost silently; `1e-3`
is a number; `010` and `1:30` are refused, as YAML 1.1 and 1.2 read them differently; aliases count as often as they
are used, so that a short text cannot stand for a large value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable
from typing import Any

import yaml

from fedmr_merge.errors import shown

MAX_CHARACTERS = 1 << 20  #: of a text
MAX_VALUES = 20_000  #: in it, aliases written out
_MAX_DEPTH = 100
_LARGEST_INTEGER = 1 << 63
_LARGEST_FLOAT = 3.4e38  # of float32, in which models compute
_MAX_DIGITS = 40  # of an integer, before it is converted
_PREFIX = "tag:yaml.org,2002:"
_AMBIGUOUS = re.compile(r"[-+]?0[0-9_]+\Z|.*:")  # in YAML 1.1 octal, or to the base of 60
_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+\Z")


class YamlError(ValueError):
    """Text that is not YAML, or holds what no file of this package may; `line` counts from 1, None where unknown."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text. Raises YamlError."""
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"is longer than {MAX_CHARACTERS:,} characters")
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _count(root, {})
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(shown(error.problem or "not YAML"), mark.line + 1 if mark else None) from error
    except yaml.YAMLError as error:  # of a character that YAML does not allow
        raise YamlError(shown(str(error).splitlines()[0])) from error
    except RecursionError as error:
        raise YamlError("is nested too deeply") from error


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return how many values a node stands for. Raises ConstructorError where they are too many or hold themselves."""
    if counts.get(id(node)) == 0:
        raise _fault("an alias stands within what it names", node)
    if id(node) not in counts:
        counts[id(node)] = 0
        counts[id(node)] = 1 + sum(_count(part, counts) for part in _parts(node))
    if counts[id(node)] > MAX_VALUES:
        raise _fault(f"holds more than {MAX_VALUES:,} values", node)
    return counts[id(node)]


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


class _Loader(yaml.SafeLoader):
    """The safe loader of YAML 1.1, with fewer types."""

    yaml_implicit_resolvers: dict[str, Any] = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_PREFIX}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth, self._values = self._depth + 1, self._values + 1
        if self._depth > _MAX_DEPTH or self._values > MAX_VALUES:
            limit = f"more than {MAX_VALUES:,} values" if self._values > MAX_VALUES else "values nested too deeply"
            raise yaml.constructor.ConstructorError(None, None, f"holds {limit}", self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _fault(f"the key {shown(key.value)!r} stands here twice", key)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def string(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        for character in text:
            if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t":
                raise _fault(f"the character {character!r} is not allowed", node)
        return text

    def integer(self, node: yaml.ScalarNode) -> int:
        _refuse_ambiguous(node)
        try:
            value = self.construct_yaml_int(node) if len(node.value) <= _MAX_DIGITS else _LARGEST_INTEGER
        except (ValueError, LookupError) as error:
            raise _fault(f"{shown(node.value, 40)!r} is not an integer", node) from error
        if not -_LARGEST_INTEGER <= value < _LARGEST_INTEGER:
            raise _fault(f"{shown(node.value, 40)} does not fit into 64 bits", node)
        return int(value)

    def number(self, node: yaml.ScalarNode) -> float:
        _refuse_ambiguous(node)
        try:
            value = float(self.construct_yaml_float(node))
        except (ValueError, LookupError, OverflowError) as error:
            raise _fault(f"{shown(node.value, 40)!r} is not a number", node) from error
        if abs(value) > _LARGEST_FLOAT and "inf" not in node.value.lower():
            raise _fault(f"{shown(node.value, 40)} is too large for float32", node)
        return value

    def boolean(self, node: yaml.ScalarNode) -> bool:
        try:
            return bool(self.construct_yaml_bool(node))
        except LookupError as error:
            raise _fault(f"{shown(node.value, 40)!r} is not true or false", node) from error


def _refuse_ambiguous(node: yaml.ScalarNode) -> None:
    if _AMBIGUOUS.match(node.value):
        reason = "versions of YAML read numbers with leading zeros or colons differently"
        raise _fault(f"{shown(node.value, 40)!r}: {reason}; leave these out, or put a string into quotes", node)


def _fault(message: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


_Loader.add_implicit_resolver(f"{_PREFIX}float", _FLOAT, list("-+.0123456789"))
_Loader.yaml_constructors = {
    f"{_PREFIX}null": _Loader.construct_yaml_null,
    f"{_PREFIX}bool": _Loader.boolean,
    f"{_PREFIX}int": _Loader.integer,
    f"{_PREFIX}float": _Loader.number,
    f"{_PREFIX}str": _Loader.string,
    f"{_PREFIX}seq": _Loader.construct_yaml_seq,
    f"{_PREFIX}map": _Loader.construct_yaml_map,
    None: _Loader.construct_undefined,  # any other
}
