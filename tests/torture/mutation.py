"""Mutations of files: of their bytes, of the JSON or YAML in them, or of one line; repeatable by their seed."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

import yaml

#: Numbers at and beyond the edges of what a reader holds.
NUMBERS = [-1, 0, 1, 2, 9, 255, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-320]
STRINGS = [
    *("", " ", "x", "é", "0", "-1", "1e5", "null", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "~", "C:\\x"),
    *("\0", "a\0b", "\x1b[31mred\x1b[0m", "\n", "a\nb", "\u202e", "\ud800", "\U0001f600", "x" * 300, "y" * 20_000),
    *("F32", "BF16", "F64", "I8", "BOOL", "F4", "F99", "layer", "auto", "digits", "re:(a+)+$", "**a" * 12, "{}", "[*]"),
    *("=cmd", "%s", "${HOME}", "{{7*7}}", "<script>", "http://127.0.0.1:1/x", "org/name@main", "model.safetensors"),
]
VALUES: list[Any] = [None, True, False, [], {}, [[]], [{}], {"": 0}, {"a": {"b": []}}, [0] * 1000, [None], *NUMBERS]
#: What no writer of JSON makes.
RAW_JSON = [
    *("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "0." + "1" * 5000, "[" * 30_000, '{"a":' * 5000, "", "00"),
    *(
        '"\\ud800"',
        '"\\u0000"',
        '{"a":1,"a":2}',
        "'x'",
        "undefined",
        "0x10",
        "+1",
        "1.",
        "//",
        "[1,]",
        '"\t"',
        "\ufeff",
    ),
]
RAW_YAML = [
    *("2026-02-30", "0x_", "9" * 5000, "!!int x", "!!python/object:os.system x", "&a [*a]", "*a", "~", "[]", "{}"),
    *("{1: 2}", "{2026-01-01: 1}", "-1", "0", "0.5", ".nan", "-.inf", "true", "x" * 9999, "[[[[]]]]", '"\\0"', "1e308"),
    *(
        "{? [1] : 2}",
        "'",
        '"',
        "|",
        ">-",
        "%TAG",
        "---",
        "...",
        "!",
        "[" * 2000,
        "{a: " * 500,
        "\t",
        "1:2:3",
        "0o8",
        "<<: 1",
    ),
    "&a [&b [1, 1, 1, 1], *b, *b, *b, *b]",
]
_HOLE = "\u2603hole\u2603"
_NUMBER = re.compile(rb"-?\d+")


def mutated_bytes(content: bytes, draw: random.Random, count: int | None = None) -> bytes:
    """Change some bytes: flipped, set, cut off, cut out, doubled, exchanged, inserted, or a number by another."""
    data = bytearray(content)
    for _ in range(count or draw.choice((1, 1, 1, 2, 5))):
        start, end = sorted((draw.randint(0, len(data)), draw.randint(0, len(data))))
        if draw.random() < 0.7:
            end = min(end, start + draw.choice((1, 2, 4, 8, 30)))
        at = min(start, max(0, len(data) - 1))
        match draw.randrange(9) if data else 8:
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                data[at] = draw.choice(b'\x00\x01\x7f\x80\xff\n"{}[],:0')
            case 2:
                del data[start:end]
            case 3:
                data[end:end] = data[start:end]
            case 4:
                del data[draw.randint(0, len(data)) :]
            case 5:
                other = draw.randint(0, len(data))
                data[other : other + end - start], data[start:end] = data[start:end], data[other : other + end - start]
            case 6:
                data += bytes(draw.randrange(256) for _ in range(draw.choice((1, 8, 100))))
            case 7:
                if numbers := list(_NUMBER.finditer(data)):
                    found = draw.choice(numbers)
                    value = draw.choice([str(int(found[0][:300]) + draw.choice((-1, 1, 8))), *map(str, NUMBERS)])
                    data[found.start() : found.end()] = value.encode()
            case 8:
                data[start:start] = draw.choice((b"\0", b"\xff\xfe", b"\n", b'"', b"[", b"}", b"\x1b[2J", b"{" * 99))
    return bytes(data)


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a tree."""
    found, waiting = [], [node]
    while waiting:
        container = waiting.pop()
        keys = container if isinstance(container, dict) else range(len(container))
        for key in list(keys):
            found.append((container, key))
            if isinstance(container[key], dict | list):
                waiting.append(container[key])
    return found


def mutated_tree(tree: Any, draw: random.Random, holes: bool) -> Any:
    """Change one value or key of a tree of objects and lists; with `holes`, at times into a mark for raw text."""
    top = [copy.deepcopy(tree)]
    places = _places(top)
    container, key = draw.choice(places)
    old = container[key]
    match draw.randrange(10):
        case 0 | 1:
            container[key] = copy.deepcopy(draw.choice(VALUES))
        case 2:
            container[key] = draw.choice(STRINGS)
        case 3:
            container[key] = _HOLE if holes else draw.choice(STRINGS)
        case 4:
            del container[key]
            if not top:
                top.append({})
        case 5:
            other, position = draw.choice(places)
            if other is not top:
                container[key] = copy.deepcopy(other[position])
        case 6 if isinstance(container, dict):
            name = draw.choice([f"{key}x", f"{key}"[:-1], str(key).upper(), _HOLE if holes else "", *STRINGS])
            container[name] = container.pop(key)
        case 6:
            container.insert(draw.randint(0, len(container)) if container is not top else 0, copy.deepcopy(old))
            del top[1:]
        case 7:
            container[key] = draw.choice(([old], {"a": old}, [old] * 3, {str(i): old for i in range(30)}))
        case 8 if isinstance(old, int | float):
            container[key] = draw.choice((old + 1, old - 1, -old, old * 2, float(old), str(old), [old]))
        case 8 | 9 if isinstance(old, str):
            container[key] = mutated_string(old, draw)
        case 9 if isinstance(container, list) and container is not top:
            draw.shuffle(container)
        case _:
            container[key] = None
    return top[0]


def mutated_string(text: str, draw: random.Random) -> str:
    """Cut, double or change a character of a string."""
    at = draw.randint(0, len(text))
    choices = (
        text[:at],
        text[at:],
        text + text,
        text[:at] + draw.choice(STRINGS) + text[at:],
        text.upper(),
        f"{text} ",
    )
    return draw.choice(choices)


def mutated_json(content: bytes, draw: random.Random) -> bytes:
    """Change a JSON text: one value of what it says, or its bytes."""
    try:
        tree = json.loads(content)
    except ValueError:  # mutated before
        return mutated_bytes(content, draw)
    if draw.random() < 0.35 or not isinstance(tree, dict | list) or not tree:
        return mutated_bytes(content, draw)
    for _ in range(draw.choice((1, 1, 1, 2))):
        tree = mutated_tree(tree, draw, holes=True)
    text = json.dumps(tree, ensure_ascii=draw.random() < 0.5)
    return _filled(text.replace(json.dumps(_HOLE), f'"{_HOLE}"'), f'"{_HOLE}"', RAW_JSON, draw)


def mutated_yaml(content: bytes, draw: random.Random) -> bytes:
    """Change a YAML text: one value of what it says, one line, or its bytes."""
    try:
        tree = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError):  # mutated before
        return mutated_bytes(content, draw)
    if (way := draw.random()) < 0.2 or not isinstance(tree, dict | list) or not tree:
        return mutated_bytes(content, draw)
    if way < 0.5:
        lines = content.decode().splitlines()
        at = draw.randrange(len(lines))
        lines[at] = f"{lines[at].partition(':')[0]}: {draw.choice(RAW_YAML)}"
        return "\n".join(lines).encode()
    for _ in range(draw.choice((1, 1, 1, 2))):
        tree = mutated_tree(tree, draw, holes=True)
    text = yaml.safe_dump(tree, allow_unicode=draw.random() < 0.5, sort_keys=False, width=10**6)
    return _filled(text.replace(json.dumps(_HOLE), _HOLE), _HOLE, RAW_YAML, draw)


def mutated_lines(content: bytes, draw: random.Random) -> bytes:
    """Change JSON lines: one line of them, their order and number, or their bytes."""
    lines = content.splitlines(keepends=True) or [b""]
    at = draw.randrange(len(lines))
    match draw.randrange(6):
        case 0:
            return mutated_bytes(content, draw)
        case 1:
            del lines[at]
        case 2:
            lines.insert(draw.randint(0, len(lines)), lines[at])
        case 3:
            draw.shuffle(lines)
        case _:
            lines[at] = mutated_json(lines[at], draw) + b"\n"
    return b"".join(lines)


def _filled(text: str, hole: str, choices: list[str], draw: random.Random) -> bytes:
    return text.replace(hole, draw.choice(choices)).encode("utf-8", "surrogatepass")


def mutator(name: str) -> Callable[[bytes, random.Random], bytes]:
    """Return how a file of this name is mutated."""
    ways = {".json": mutated_json, ".yaml": mutated_yaml, ".jsonl": mutated_lines}
    return ways.get("." + name.rpartition(".")[2], mutated_bytes)
