"""Read JSON of any length value by value, so that no more than one value and a piece of its text is held."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
#: A number that stands at the end of what was read may go on: `1` as `1e+5`.
_LOOK_AHEAD = 3


def named_once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, as an `object_pairs_hook`: of two members of one name the last would win silently.

    Raises ValueError for these.
    """
    found = dict(members)
    if len(found) < len(members):
        raise ValueError(f"it names {Counter(name for name, _ in members).most_common(1)[0][0]!r} twice")
    return found


class JsonReader:
    """A JSON text in UTF-8, read from the front to the back.

        for name in reader.members():       # of the object that comes next
            value = reader.value()          # or reader.elements(), of an array
        reader.end()

    Raises ValueError where the text is not JSON, UnicodeError where it is not UTF-8, RecursionError where it is nested
    too deep.
    """

    def __init__(self, chunks: Iterable[bytes], decoder: json.JSONDecoder | None = None) -> None:
        self._chunks = codecs.iterdecode(chunks, "utf-8")
        self._decoder = decoder or json.JSONDecoder()
        self._text = ""
        self._at = 0

    def members(self) -> Iterator[str]:
        """Yield the names of an object's members; the caller reads each one's value before it goes on."""
        for _ in self._items("{", "}"):
            name = self.value()
            if type(name) is not str:
                raise ValueError(f"expected a name, found {name!r:.40}")
            self._symbol(":")
            yield name

    def elements(self) -> Iterator[Any]:
        """Yield the elements of an array."""
        for _ in self._items("[", "]"):
            yield self.value()

    def value(self) -> Any:
        """Return the value that comes next, whole."""
        while True:
            start = self._skip_space()
            try:
                value, end = self._decoder.raw_decode(self._text, start)
            except json.JSONDecodeError as error:
                if not self._read_on():
                    raise ValueError(error.msg) from error
                continue
            if end + _LOOK_AHEAD <= len(self._text) or not self._read_on():
                self._at = end
                return value

    def end(self) -> None:
        """Raise ValueError where anything but space follows."""
        if self._skip_space() < len(self._text):
            raise ValueError(f"{self._text[self._at :]!r:.40} follows its end")

    def _items(self, opening: str, closing: str) -> Iterator[None]:
        self._symbol(opening)
        at = self._skip_space()
        if self._text[at : at + 1] == closing:
            self._symbol(closing)
            return
        yield
        while self._symbol("," + closing) == ",":
            yield

    def _symbol(self, expected: str) -> str:
        """Step over the next character that is no space."""
        at = self._skip_space()
        found = self._text[at : at + 1]
        if not found or found not in expected:
            raise ValueError(f"expected {' or '.join(expected)}, found {found or 'the end'}")
        self._at = at + 1
        return found

    def _skip_space(self) -> int:
        """Return where the next character that is no space stands; the end of the text where there is none."""
        if self._text[self._at : self._at + 1] > " ":  # most often there is none
            return self._at
        while True:
            at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if at < len(self._text):
                return at
            self._at = at
            if not self._read_on():
                return self._at

    def _read_on(self) -> bool:
        """Read as much again as is waiting, so that a long value is not tried too often; False at the end."""
        waiting = self._text[self._at :]
        parts: list[str] = []
        read = 0
        for part in self._chunks:
            parts.append(part)
            read += len(part)
            if read >= len(waiting):
                break
        if parts:
            self._text, self._at = waiting + "".join(parts), 0
        return bool(parts)
