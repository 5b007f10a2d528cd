"""What the commit of a push says: which files it adds, changes and deletes, and which card it came from."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from fedmr_merge import __version__

_LISTED = 50
_CARD = "Local-Card"
_FINGERPRINT = re.compile(rf"^{_CARD}: ([0-9a-f]{{16}})$", re.MULTILINE)


def commit_title(changed: Sequence[str], deleted: Sequence[str], known: Collection[str]) -> str:
    """Return a commit's title; `known` are the paths that the Hub has already."""
    parts = (
        ("add", [path for path in changed if path not in known]),
        ("update", [path for path in changed if path in known]),
        ("delete", list(deleted)),
    )
    text = ", ".join(f"{verb} {_several(paths)}" for verb, paths in parts if paths)
    return text[:1].upper() + text[1:]


def commit_description(
    changed: Sequence[str], deleted: Sequence[str], known: Collection[str], notes: Sequence[str], card: str | None
) -> str:
    """Return the text below the title; `card` is the fingerprint of the local card, which `pushed_card` finds again."""
    lines = [f"- {'updated' if path in known else 'added'} {path}" for path in changed]
    lines += [f"- deleted {path}" for path in deleted]
    if len(lines) > _LISTED:
        lines = [*lines[:_LISTED], f"- and {len(lines) - _LISTED} more"]
    lines += [f"- {note}" for note in notes]
    trailer = f"Pushed with fedmr-merge {__version__}" + (f"\n{_CARD}: {card}" if card else "")
    return "\n".join([*lines, "", trailer])


def pushed_card(description: str) -> str | None:
    """Return the fingerprint of the local card that a commit of ours records; None for any other commit."""
    found = _FINGERPRINT.findall(description)
    return found[-1] if found else None


def _several(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{len(paths)} files"
