"""What a sweep says of how much of it is left."""

from __future__ import annotations

from fedmr_merge.cli.sweep import Board
from fedmr_merge.recipe.sweep import Skipped, Started
from fedmr_merge.recipe.sweep_workers import Ended, Progress


def test_rounds_that_runs_have_in_common_are_not_counted_as_runs() -> None:
    said: list[str] = []
    board = Board({"a", "b", "c"}, jobs=1)
    for event in (
        Skipped("a", "done already"),
        Started("beginning-1"),
        Ended("beginning-1"),
        Started("b"),
        Progress("b", 1, 1, "accuracy", 0.5),
        Ended("b"),
        Started("c"),
        Ended("c", "it diverged"),
    ):
        board.note(event, say=said.append)
    assert board.counts["skipped"] == board.counts["done"] == board.counts["failed"] == 1
    assert said[2] == "beginning-1: done, it was complete already; 2 of 3 left"
    assert said[4].startswith("b: done, accuracy 0.5000; 1 of 3 left, about")
