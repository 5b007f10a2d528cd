"""The metrics of a model: their names, and which of two values is better. Imports no torch: reports read it, too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number that says how good a model is, e.g. `accuracy`; a round records it as `test_accuracy`."""

    name: str
    higher_is_better: bool
    is_share: bool = False  #: from 0 to 1, and shown to people in percent

    @property
    def key(self) -> str:
        """The name that it has in `metrics.jsonl`, measured on the test part."""
        return f"test_{self.name}"

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values."""
        return max(values) if self.higher_is_better else min(values)

    def is_better(self, value: float, than: float, by: float = 0.0) -> bool:
        """Return whether a value is better than another by more than `by`."""
        return value > than + by if self.higher_is_better else value < than - by

    @property
    def scale(self) -> float:
        """What a value is multiplied with before people see it: a share is shown in percent."""
        return 100.0 if self.is_share else 1.0

    @property
    def unit(self) -> str:
        """What follows a number that people see."""
        return " %" if self.is_share else ""

    @property
    def form(self) -> str:
        """The format of a value, times `scale`, that people see."""
        return ".2f" if self.is_share else ".4g"

    def shown(self, value: float) -> str:
        """Return a value as people read it."""
        return f"{self.scale * value:{self.form}}{self.unit}"

    @property
    def worst(self) -> float:
        """A value that every other one is better than."""
        return float("-inf") if self.higher_is_better else float("inf")


ACCURACY = Metric("accuracy", higher_is_better=True, is_share=True)
