"""What each file of a run folder may hold. Keys that are not named here are allowed: later versions may add some.

Files are checked as a whole when they are read, so that no other module meets a value of the wrong type.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from fedmr_merge.errors import PlanError
from fedmr_merge.layers.plan import RecombinationPlan

_SHOWN = 60  #: characters of a value, in a message
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Number = Annotated[int, Field(ge=1, lt=1 << 63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Options = dict[str, Any]


class _Content(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class Round(_Content):
    """What the lines of both logs begin with."""

    round: Number  #: counted through the whole run
    stage: Number  #: position in the recipe, from 1
    method: str


class MetricsLine(Round):
    """A line of metrics.jsonl."""

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    test_accuracy: Share | None = None  #: of classification, where a round was evaluated
    train_loss: Finite | None = None
    test_loss: Finite | None = None
    similarity: Finite | None = None
    epsilon: Finite | None = None
    epsilon_to_server: Finite | None = None
    adapter_lost: Share | None = None  #: of the norm of the exact mean of adapters
    adapter_lost_at_start: Share | None = None  #: the same, of what a stage started from
    lr: Finite | None = None  #: where it follows a schedule
    bytes_down: Count | None = None  #: sent to the clients; version 0.1.0 did not record it
    bytes_up: Count | None = None


class LineageLine(Round):
    """A line of lineage.jsonl."""

    clients: Annotated[list[Count], Field(min_length=1)]
    plan: Options | None  #: None where the round did not recombine

    @field_validator("plan")
    @classmethod
    def _is_plan(cls, plan: Options | None) -> Options | None:
        if plan is not None:
            try:
                RecombinationPlan.from_json(plan)
            except PlanError as error:
                raise ValueError(str(error)) from error
        return plan


class PartitionFile(_Content):
    """partition.json; what is published of it has no lists of examples."""

    class_names: Annotated[list[str], Field(min_length=1)]
    class_counts: Annotated[list[Annotated[list[Count], Field(min_length=1)]], Field(min_length=1)]
    format_version: Literal[1] = 1
    clients: list[list[Count]] | None = None

    @model_validator(mode="after")
    def _is_rectangular(self) -> PartitionFile:
        if any(len(counts) != len(self.class_names) for counts in self.class_counts):
            raise ValueError("its counts are not a number for each of class_names, for every client")
        if self.clients is not None and len(self.clients) != len(self.class_counts):
            raise ValueError("its counts are not a row for every client")
        return self


class MetricEntry(_Content):
    """A metric of task.json."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    higher_is_better: bool
    is_share: bool = False


class TaskFile(_Content):
    """task.json."""

    format_version: Literal[1]
    name: str
    pipeline_tag: str
    metrics: Annotated[list[MetricEntry], Field(min_length=1)]
    widget: list[dict[str, str]] = []


class EnvironmentFile(_Content):
    """environment.json."""

    fedmr_merge: str
    python: str
    platform: str
    packages: dict[str, str]
    device: str
    threads: Annotated[int, Field(ge=1, le=4096)]


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class StateFile(_Content):
    """state.json of a checkpoint. Version 1 was written by 0.1.0 and has no hashes."""

    format_version: Literal[1, 2]
    round: Number
    stage: Number
    method: str
    first_round: Number
    stage_over: bool
    slots: Annotated[int, Field(ge=1, lt=1 << 20)]
    facts: Options
    best_round: Number | None = None  #: of a stage that keeps its best round: which one that is so far
    sha256: dict[str, Sha256] = {}
    sha256_of_state: Sha256 | None = None


class EvaluationFile(_Content):
    """evaluation.json."""

    round: Count
    examples: Number
    accuracy: Share | None = None  #: of classification
    loss: Finite


class _Named(_Content):
    name: str


class RecipeFile(_Content):
    """recipe.yaml, as far as its readers need it; `fedmr-merge run` compares all of it."""

    name: str
    seed: Count
    data: _Named
    model: _Named
    training: Options
    stages: Annotated[list[Annotated[dict[str, Options], Field(min_length=1, max_length=1)]], Field(min_length=1)]


def check_content(model: type[BaseModel], content: Any) -> str | None:
    """Return what is wrong with the parsed content of a file, in one line; None when nothing is."""
    try:
        TypeAdapter(model).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        found = "" if first["type"] == "missing" else f", found {_shortened(first['input'])}"
        return f"{place}: {message}{found}" if place else f"{message}{found}"
    return None


def _shortened(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return "a very large number"
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = repr(value[: _SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
