"""The stages of a recipe: rounds of a training method, and what can be done between and after them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, Field

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.criteria import History, Until
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.training.options import Training
from fedmr_merge.federated.training.schedule import LearningRates, LrSchedule
from fedmr_merge.publish.licences import check_licence

RepoId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")]
LicenceId = Annotated[str, AfterValidator(check_licence)]


@dataclass(frozen=True)
class Length:
    """How long a training stage lasts, and which of its rounds it ends with."""

    rounds: Annotated[int, Ge(1), Le(1_000_000)]  #: at most, where there is `until`
    until: Until | None = None  #: ends the stage as soon as one of its criteria is met
    keep: Literal["last", "best"] = "last"
    """Which models the next stage starts from, and are published after the last one: those of the stage's last round,
    or of the round whose global model was best on what `training.validation_share` holds out."""

    def check(self, federation: Federation, path: str) -> None:
        """Raise TrainingError for a criterion that could never be met, or a best round that nothing decides."""
        if self.until is not None:
            self.until.check(federation)
        if self.keep == "best" and federation.deciding_part != "validation":
            raise TrainingError(
                f"{path}.keep is best, and no examples are held out to decide which round that is",
                hint="set training.validation_share, e.g. to 0.1; the test data must not decide",
            )

    def best_round(self, federation: Federation, history: History, *, over: bool = False) -> int | None:
        """Return the first of the best rounds of the stage so far; None where it keeps its last, or none counts yet.

        Those count that `training.evaluate_every` names, and the last one of `history` where the stage is over with it.
        """
        if self.keep == "last":
            return None
        metric, every = federation.task.decisive, federation.training.evaluate_every
        best, found = metric.worst, None
        for line in history:
            value = line.get(f"validation_{metric.name}")
            # Other rounds are evaluated where they are published, which must not decide which round is kept.
            if line["round"] % every and not (over and line is history[-1]):
                continue
            if value is not None and metric.is_better(value, best):
                best, found = value, line["round"]
        return found

    def ended(self, federation: Federation) -> Callable[[History], str | None]:
        """Return what says, by the metrics of the rounds so far, why the stage ends before its last round, or None."""
        metric, part = federation.task.decisive, federation.deciding_part
        key, every = f"{part}_{metric.name}", federation.training.evaluate_every

        def reason(history: History) -> str | None:
            if self.until is None:
                return None
            # Other rounds are evaluated where they are published, which must not decide how long a stage lasts.
            seen = [line if line["round"] % every == 0 else {**line, key: None} for line in history]
            return self.until.reached(seen, metric, part)

        return reason


@dataclass(frozen=True)
class Rates:
    """How fast the clients of a stage learn, where that is not as `training` says."""

    lr: Annotated[float, Gt(0)] | None = None  #: η of this stage; left out: training.lr
    lr_schedule: LrSchedule | None = None
    """The schedule of this stage, which counts from its first round; left out: training.lr_schedule, which counts from
    the first round of the run."""


@dataclass(frozen=True)
class TrainingStage:
    """Rounds of one training method."""

    method: Algorithm
    length: Length
    rates: Rates = Rates()

    def learning_rates(self, training: Training, first_round: int) -> LearningRates:
        """Return the learning rates of this stage's rounds, the first of which is `first_round` of the run."""
        lr = training.lr if self.rates.lr is None else self.rates.lr
        if self.rates.lr_schedule is not None:
            return LearningRates(lr, self.rates.lr_schedule, first_round)
        return LearningRates(lr, training.lr_schedule)

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.name

    def to_json(self) -> dict[str, Any]:
        """Return the stage as a recipe spells it."""
        until = {} if self.length.until is None else {"until": self.length.until}
        keep = {} if self.length.keep == "last" else {"keep": self.length.keep}
        rates = {name: value for name, value in vars(self.rates).items() if value is not None}
        return {"rounds": self.length.rounds, **until, **keep, **rates, **self.method.options()}


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the global model on the held-out data, class by class."""

    name = "evaluate"

    def to_json(self) -> dict[str, Any]:
        """Return the stage's options."""
        return {}


@dataclass(frozen=True)
class Recalibrate:
    """Estimate the global model's batch normalisation statistics anew, from batches of the clients' data."""

    batches: Annotated[int, Ge(1)] = 10  #: of `training.batch_size` examples

    name = "recalibrate"

    def to_json(self) -> dict[str, Any]:
        """Return the stage's options."""
        return {"batches": self.batches}


@dataclass(frozen=True)
class Publish:
    """Write what is to be published, with its card, to the run's `global/` (`cohort/` where it holds the cohort alone);
    with `repo`, push it to the Hub.
    """

    repo: RepoId | None = None  #: `org/name`; nothing leaves the machine without it
    private: bool = False  #: make a new repository private
    license: LicenceId | None = None  #: licence of the model, as the Hub names it, e.g. apache-2.0
    tags: tuple[str, ...] = ()  #: of the card, besides those that every card has
    what: Literal["global", "cohort", "both"] = "global"  #: cohort: the models that the next round would dispatch
    every: Annotated[int, Ge(1)] | None = None  #: also push after every so many rounds, to a branch `round-000100`
    client_information: bool = True  #: publish partition and lineage, which reveal something of the clients

    name = "publish"

    def to_json(self) -> dict[str, Any]:
        """Return the stage's options."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


Stage = TrainingStage | Recalibrate | Evaluate | Publish
OTHER_STAGES: dict[str, type[Recalibrate | Evaluate | Publish]] = {
    "recalibrate": Recalibrate,
    "evaluate": Evaluate,
    "publish": Publish,
}
