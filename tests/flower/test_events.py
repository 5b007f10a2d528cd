"""Events travel as lines of a log among other lines."""

from __future__ import annotations

import pytest

from fedmr_merge.flower.events import event_line, read_event


def test_an_event_is_read_from_its_line():
    event = {"event": "round", "round": 3, "note": "fedmr-merge: and “quotes”\nand lines"}
    assert read_event(event_line(event)) == event
    assert "\n" not in event_line(event)
    assert read_event(f"INFO :  {event_line(event)}\n") == event


@pytest.mark.parametrize("line", ["", "INFO: started", "fedmr-merge: {", "fedmr-merge: [1]", 'fedmr-merge: {"a": 1}'])
def test_other_lines_are_no_events(line):
    assert read_event(line) is None
