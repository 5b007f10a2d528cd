"""Read JSON strictly: what is said twice is not read once."""

from __future__ import annotations

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
