"""The stages of a recipe: rounds of a training method, and what can be done between and after them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import AfterValidator, Field

from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.criteria import Until
from fedmr_merge.publish.licences import check_licence

RepoId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")]
LicenceId = Annotated[str, AfterValidator(check_licence)]


@dataclass(frozen=True)
class Length:
    """How long a training stage lasts."""

    rounds: Annotated[int, Ge(1)]  #: at most, where there is `until`
    until: Until | None = None  #: ends the stage as soon as one of its criteria is met


@dataclass(frozen=True)
class TrainingStage:
    """Rounds of one training method."""

    method: Algorithm
    length: Length

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.name

    def to_json(self) -> dict[str, Any]:
        """Return the stage as a recipe spells it."""
        until = {} if self.length.until is None else {"until": self.length.until}
        return {"rounds": self.length.rounds, **until, **self.method.options()}


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
