"""What a sweep says of how much of it is left."""

from __future__ import annotations

from fedmr_merge.cli.sweep import Board
from fedmr_merge.recipe.sweep import Skipped, Started
from fedmr_merge.recipe.sweep_workers import Ended, Progress


def test_rounds_that_runs_have_in_common_are_not_counted_as_runs() -> None:
    said: list[str] = []
    board = Board({"a", "b", "c", "d"}, jobs=1)
    for event in (
        Skipped("a", "done already"),
        Started("beginning-1"),
        Ended("beginning-1"),
        Started("b"),
        Progress("b", 1, 1, "accuracy", 0.5),
        Ended("b"),
        Started("c"),
        Ended("c", "it diverged"),
        Ended("d", "its first rounds, beginning-2, failed"),  # never started
    ):
        board.note(event, say=said.append)
    assert (board.counts["skipped"], board.counts["done"], board.counts["failed"]) == (1, 1, 2)
    assert said[2] == "beginning-1: done, it was complete already; 3 of 4 left"
    assert said[4].startswith("b: done, accuracy 0.5000; 2 of 4 left, about")


def test_where_there_is_no_table_a_run_says_where_it_is() -> None:
    said: list[str] = []
    often, seldom = Board({"a"}, jobs=1, say_every_seconds=0), Board({"a"}, jobs=1)
    for event in (
        Started("a"),
        Progress("a", 401, 500, "accuracy", 0.5),
        Progress("a", 402, 500, "accuracy", None),
    ):
        often.note(event, say=said.append)
        seldom.note(event, say=lambda line: said.append(f"seldom {line}"))
    assert said[:3] == ["a: started", "seldom a: started", "a: round 401 of 500, accuracy 0.5000"]
    # What is left is reckoned from the rounds of this process, as the run was resumed after its round 400.
    assert said[3:] == ["a: round 402 of 500, accuracy 0.5000, 0 s left"]
