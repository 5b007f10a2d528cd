"""Read JSON strictly: a name that appears twice is refused."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def named_once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, as an `object_pairs_hook`: of two members of one name the last would win silently.

    Raises ValueError for these.
    """
    found = dict(members)
    if len(found) < len(members):
        raise ValueError(f"it names {Counter(name for name, _ in members).most_common(1)[0][0]!r} twice")
    return found


def refuse_surrogates(text: str, value: Any) -> None:
    """Raise ValueError when a value that was parsed from this text holds half of a character, such as `"\\ud800"`.

    JSON can say it, but neither a file nor a terminal takes it.
    """
    if "\\ud" not in text and "\\uD" not in text:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"it holds {half}, which is half of a character") from error
