"""What a ServerApp reports while it runs, as lines of its log; the command line reads them from `flwr log`."""

from __future__ import annotations

import json
from typing import Any

_MARK = "fedmr-merge: "


def event_line(event: dict[str, Any]) -> str:
    """Return an event as a line."""
    return f"{_MARK}{json.dumps(event)}"


def read_event(line: str) -> dict[str, Any] | None:
    """Return the event of a line, None for any other line of the log."""
    _, mark, text = line.partition(_MARK)
    if not mark:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("event"), str) else None
