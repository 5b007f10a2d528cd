"""The learning rate of each round: constant, or by a schedule as torch has it, with rounds in place of epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from fedmr_merge.errors import TrainingError

_OPTIONS = {
    "constant": (),
    "cosine": ("rounds", "min_lr"),
    "step": ("every", "factor"),
    "exponential": ("factor",),
}
"""The options of each kind. All of them are needed, except for `min_lr`."""


@dataclass(frozen=True)
class LrSchedule:
    """How the learning rate changes from round to round; within a round it stays the same."""

    kind: Literal["constant", "cosine", "step", "exponential"] = "constant"  #: as torch has them
    rounds: Annotated[int, Ge(1)] | None = None  #: of cosine: the rounds until the rate is at min_lr, where it stays
    min_lr: Annotated[float, Ge(0)] | None = None  #: of cosine: the smallest rate; left out: 0
    every: Annotated[int, Ge(1)] | None = None  #: of step: rounds between two changes
    factor: Annotated[float, Gt(0), Le(1)] | None = None  #: γ of step and exponential, by which the rate is multiplied
    warmup_rounds: Annotated[int, Ge(0)] = 0  #: rounds in which the rate rises to lr, before the schedule begins

    def check(self, path: str) -> None:
        """Raise TrainingError when an option is missing, or is one of another kind; `path` is where it stands."""
        for option in ("rounds", "min_lr", "every", "factor"):
            value, wanted = getattr(self, option), option in _OPTIONS[self.kind]
            if wanted and value is None and option != "min_lr":
                raise TrainingError(
                    f"{path}.{option} is missing, which kind {self.kind} needs",
                    hint=f"a schedule of this kind has the options {', '.join(_OPTIONS[self.kind])}",
                )
            if not wanted and value is not None:
                raise TrainingError(f"{path}.{option} is not an option of kind {self.kind}", hint="leave it out")

    def at(self, done: int, lr: float) -> float:
        """Return the learning rate after so many rounds of the schedule are done, with the base rate `lr`."""
        if done < self.warmup_rounds:
            return lr * (done + 1) / self.warmup_rounds
        done -= self.warmup_rounds
        if self.kind == "cosine":
            least, rounds = self.min_lr or 0.0, self.rounds or 1
            if done >= rounds:
                return least
            return least + (lr - least) * (1 + math.cos(math.pi * done / rounds)) / 2
        if self.kind == "step":
            return lr * float(self.factor or 1.0) ** (done // (self.every or 1))
        return lr * float(self.factor or 1.0) ** done if self.kind == "exponential" else lr


@dataclass(frozen=True)
class LearningRates:
    """The learning rates of the rounds of a stage."""

    lr: float  #: the base rate
    schedule: LrSchedule | None = None
    first_round: int = 1  #: the round that the schedule counts from

    def at(self, round: int) -> float:
        """Return the learning rate of a round of the run."""
        return self.lr if self.schedule is None else self.schedule.at(round - self.first_round, self.lr)

    def require_positive(self, last_round: int) -> None:
        """Raise TrainingError when the learning rate has fallen to 0 by the last round of a stage."""
        if self.at(last_round) <= 0:
            raise TrainingError(
                f"the learning rate has fallen to 0 by round {last_round}, in which nothing would be trained",
                hint="let lr_schedule last for more rounds, or set its min_lr",
            )
