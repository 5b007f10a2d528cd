"""What the runs of a sweep will take, from a round or two of each kind of run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmr_merge.errors import AbsentDataError, HubError
from fedmr_merge.federated.rounds import begin_stage, run_rounds
from fedmr_merge.recipe.own import Own
from fedmr_merge.recipe.prepare import first_state, model_bytes, prepare
from fedmr_merge.recipe.schema import Recipe, parse_recipe
from fedmr_merge.recipe.stages import TrainingStage
from fedmr_merge.recipe.sweep_file import SweepRun

_TIMED_ROUNDS = 2  # the first of them is slow: memory is taken, kernels are chosen
_KEPT_CHECKPOINTS = 3  # of a run, at most, while it lasts


@dataclass(frozen=True)
class Cost:
    """What a run will take; None where it could not be tried."""

    run: SweepRun
    rounds: int
    seconds_a_round: float | None = None
    sent_bytes: float | None = None  #: to the clients and back, in all rounds
    disk_bytes: int | None = None
    absent: str | None = None  #: which data are missing, if they are


@dataclass(frozen=True)
class _Tried:
    seconds: float | None
    bytes_a_round: float | None
    model_bytes: int
    slots: int


def forecast(runs: Sequence[SweepRun], *, budget_seconds: float = 120.0) -> list[Cost]:
    """Return what each run will take.

    Runs whose rounds cost the same (one model, one data set, one way to train, the same methods) are tried once, for
    two rounds of each method.

    Args:
        runs: The runs.
        budget_seconds: Once trying has taken so long, no further kind of run is timed.

    Raises:
        RecipeError: If the recipe of a run has faults.
    """
    begun = time.monotonic()
    tried: dict[str, _Tried | str] = {}
    found = []
    for run in runs:
        recipe = parse_recipe(run.recipe, run.name, Own(run.code_folders))
        kind = _kind(recipe)
        if kind not in tried:
            tried[kind] = _try(recipe, timed=time.monotonic() - begun < budget_seconds)
        cost = tried[kind]
        if isinstance(cost, str):
            found.append(Cost(run, recipe.rounds, absent=cost))
            continue
        sent = None if cost.bytes_a_round is None else cost.bytes_a_round * recipe.rounds
        disk = _KEPT_CHECKPOINTS * (cost.slots + 1) * cost.model_bytes
        found.append(Cost(run, recipe.rounds, cost.seconds, sent, disk))
    return found


def _kind(recipe: Recipe) -> str:
    """Return what decides the cost of a run's rounds, as a key."""
    whole = recipe.to_json()
    data = {key: value for key, value in whole["data"].items() if key != "partition"}
    methods = [stage.name for stage in recipe.stages if isinstance(stage, TrainingStage)]
    return json.dumps([data, whole["model"], whole["training"], methods], sort_keys=True, default=str)


def _try(recipe: Recipe, *, timed: bool) -> _Tried | str:
    try:
        federation = prepare(recipe)
    except (AbsentDataError, HubError) as error:
        return str(error)
    seconds: list[float] = []
    sent: list[float] = []
    if timed:
        state = first_state(recipe, federation)
        done = 0
        for stage in recipe.stages:
            if not isinstance(stage, TrainingStage):
                continue
            state = begin_stage(federation, stage.method, state)
            before = time.perf_counter()
            for result in run_rounds(federation, stage.method, state, first_round=done + 1, rounds=_TIMED_ROUNDS):
                took, before = time.perf_counter() - before, time.perf_counter()
                state, done = result.state, result.round
            seconds.append(took)
            sent.append(_sent(result.metrics))
    weights = [s.length.rounds for s in recipe.stages if isinstance(s, TrainingStage)]
    return _Tried(_mean(seconds, weights), _mean(sent, weights), model_bytes(federation), federation.slots)


def _sent(metrics: Mapping[str, float]) -> float:
    return metrics["bytes_down"] + metrics["bytes_up"]


def _mean(values: Sequence[float], weights: Sequence[int]) -> float | None:
    """Return the mean over the rounds of all stages, None where nothing was measured."""
    if not values:
        return None
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
