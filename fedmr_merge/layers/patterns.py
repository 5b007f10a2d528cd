"""Patterns of tensor names: what they match, in bounded time.

`**` before a fixed piece and another `**` takes linear time. A regular expression can take time that grows
exponentially with the length of a name (`(a+)+$`, `(a?){30}a{30}`). One that could runs in a process of its own, which
is stopped after `LIMIT_SECONDS`: nothing else stops Python's `re`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedmr_merge.errors import RuleError

LIMIT_SECONDS = 5.0

_CAPTURE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
#: What a pattern that matches every name is compiled to, captured or not.
_ANYTHING = re.compile(r"\^?(?:\.[*+]\??|\((?:\?:|\?P<\w+>)?\.[*+]\??\))\$?")
_REPEAT = re.compile(r"(?<!\\)(?:[*+]|\{\d*,\d*\})")
_REPEATED_GROUP = re.compile(r"(?<!\\)\)(?:[*+]|\{[\d,])")
_OPTIONAL = re.compile(r"(?<![\\(*+?}])\?")  #: what may be left out: each one doubles the ways to match
_NUMBERED_PARTS = re.compile(r"\(\?:\\\.\\d\+\)[*+]")  #: `(?:\.\d+)+`, which can match in one way only
_MAX_STEPS = 10**9
_COMMITTED = "_committed_"
_COMMITTED_PIECE = re.compile(rf"\(\?=\(\?P<({_COMMITTED}\d+)>.*?\)\)\(\?P=\1\)")
_MATCH_ALL = """
import json, re, sys
expression, names = json.load(sys.stdin)
pattern = re.compile(expression, re.DOTALL)
json.dump([found and found.groupdict() for found in map(pattern.fullmatch, names)], sys.stdout)
"""


@dataclass(frozen=True)
class Pattern:
    """A pattern, and the regular expression that it stands for."""

    text: str
    expression: re.Pattern[str]

    @property
    def matches_anything(self) -> bool:
        return bool(_ANYTHING.fullmatch(self.expression.pattern))

    @property
    def captures(self) -> frozenset[str]:
        """Return the names of what the pattern keeps of a tensor's name."""
        return frozenset(name for name in self.expression.groupindex if not name.startswith(_COMMITTED))

    def _may_take_long(self, longest: int) -> bool:
        """Return whether matching a name of this length may take long: what repeats is repeated, or too much of it."""
        text = _COMMITTED_PIECE.sub("", _NUMBERED_PARTS.sub("", self.expression.pattern))
        repeats = len(_REPEAT.findall(text))
        steps = longest ** max(repeats - 1, 0) << len(_OPTIONAL.findall(text))
        return bool(_REPEATED_GROUP.search(text)) or steps > _MAX_STEPS

    def match(self, names: Sequence[str]) -> list[dict[str, str] | None]:
        """Return for each name what the pattern keeps of it, None where it does not match.

        Raises RuleError where that takes too long.
        """
        if not names:
            return []
        if not self._may_take_long(max(map(len, names))):
            return list(self._match_here(names))
        task = json.dumps([self.expression.pattern, list(names)])
        command = [sys.executable, "-I", "-S", "-c", _MATCH_ALL]
        try:
            done = subprocess.run(
                command, input=task, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=True
            )
        except subprocess.TimeoutExpired as error:
            raise self._takes_too_long(names) from error
        return [found if found is None else _kept(found) for found in json.loads(done.stdout)]

    def _match_here(self, names: Sequence[str]) -> Iterator[dict[str, str] | None]:
        end = time.monotonic() + LIMIT_SECONDS  # of all names together: each of them alone takes bounded time
        for name in names:
            found = self.expression.fullmatch(name)
            if time.monotonic() > end:
                raise self._takes_too_long(names)
            yield _kept(found.groupdict()) if found else None

    def _takes_too_long(self, names: Sequence[str]) -> RuleError:
        return RuleError(
            f"the pattern {shortened(self.text)} takes more than {LIMIT_SECONDS:.0f} s to be matched with "
            f"{len(names)} names",
            hint="do not repeat what repeats, as in (a+)+, and name fixed parts between wildcards",
        )


def compile_pattern(match: str) -> Pattern:
    """Translate a pattern into a regular expression. Raises ValueError with what is wrong with it."""
    if match.startswith("re:"):
        return Pattern(match, _compiled(match[3:]))
    seen: set[str] = set()
    pieces: list[_Piece] = []
    position = 0
    while position < len(match):
        token, piece = _next_piece(match, position, seen)
        position += len(token)
        if piece is None:  # `**`: with the dot that sets it apart, so that it may stand for no part at all
            after_dot = not pieces or pieces[-1].text == "\\."
            if pieces and after_dot and position == len(match):
                pieces[-1] = _Piece(r"(?:\..+)?")
            elif after_dot and match.startswith(".", position):
                pieces.append(_Piece(r"(?:.+\.)?", lazy=r"(?:.+?\.)??"))
                position += 1
            else:
                pieces.append(_Piece(".*", lazy=".*?"))
        else:
            pieces.append(piece)
    return Pattern(match, _compiled("".join(_committed(pieces))))


@dataclass(frozen=True)
class _Piece:
    """A piece of a regular expression."""

    text: str
    lazy: str | None = None  #: of `**`: the same, the shortest first
    is_fixed: bool = False  #: a character, or `*`, which nothing else depends on


def _next_piece(match: str, position: int, seen: set[str]) -> tuple[str, _Piece | None]:
    """Return the next token of a pattern and what it stands for, None for `**`."""
    if match[position] == "{":
        end = _closing_brace(match, position)
        return match[position : end + 1], _Piece(_capture(match[position + 1 : end], seen))
    if match.startswith("**", position):
        return "**", None
    if match[position] == "*":
        return "*", _Piece("[^.]*", is_fixed=True)
    if match[position] == "}":
        raise ValueError("a '}' without its '{'")
    return match[position], _Piece(re.escape(match[position]), is_fixed=True)


def _committed(pieces: Sequence[_Piece]) -> Iterator[str]:
    """Yield the pieces as text, fixed ones between two `**` so that they match where they first can and nowhere else.

    What follows the second `**` can start anywhere later: no other place needs to be tried, and several `**` take
    linear time. (A lookahead is never entered twice: this is an atomic group in the syntax of Python 3.10.)
    """
    place = 0
    while place < len(pieces):
        end = place + 1
        while end < len(pieces) and pieces[end].is_fixed:
            end += 1
        between = pieces[place + 1 : end]
        is_between = pieces[place].lazy and between and end < len(pieces) and pieces[end].lazy
        if is_between and sum(piece.text == "[^.]*" for piece in between) <= 1:
            name = f"{_COMMITTED}{place}"
            yield f"(?=(?P<{name}>{pieces[place].lazy}{''.join(piece.text for piece in between)}))(?P={name})"
        else:
            yield "".join(piece.text for piece in pieces[place:end])
        place = end


def _compiled(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression, re.DOTALL)  # a name may hold a line break
    except (OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _closing_brace(match: str, start: int) -> int:
    depth = 0
    for position in range(start, len(match)):
        depth += {"{": 1, "}": -1}.get(match[position], 0)
        if depth == 0:
            return position
    raise ValueError("a '{' without its '}'")


def _capture(body: str, seen: set[str]) -> str:
    if body.startswith("re:"):
        _compiled(body[3:])
        return f"(?:{body[3:]})"
    name, colon, kind = body.partition(":")
    if not _CAPTURE_NAME.match(name):
        raise ValueError(f"{{{body}}}: a capture needs a name of letters, digits and _")
    if name in seen:
        if colon:
            raise ValueError(f"{{{body}}}: {name!r} was captured before; write {{{name}}} for the same string again")
        return f"(?P={name})"
    seen.add(name)
    if kind in ("", "*"):
        return f"(?P<{name}>[^.]+)"
    if kind == "**":
        return f"(?P<{name}>.+)"
    if kind.startswith("re:"):
        _compiled(kind[3:])
        return f"(?P<{name}>{kind[3:]})"
    raise ValueError(f"{{{body}}}: after the name comes *, ** or re:EXPRESSION")


def _kept(groups: dict[str, str | None]) -> dict[str, str]:
    return {name: value or "" for name, value in groups.items() if not name.startswith(_COMMITTED)}


def shortened(text: str, most: int = 80) -> str:
    """Return a string as messages quote it: the beginning of a long one."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")
