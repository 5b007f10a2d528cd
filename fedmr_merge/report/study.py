"""What is compared: runs that differ in their seed alone are one experiment, and experiments make a study.

A study is read from run folders, from what their `publish` stages wrote, and from the folders of sweeps.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedmr_merge.errors import RunError
from fedmr_merge.federated.metrics import Metric
from fedmr_merge.runs.record import RunRecord, holds_run, read_run
from fedmr_merge.runs.sweep_folder import RUNS, SWEEP_FILE, PublishedNumber, read_sweep_folder

#: Options that say where and how fast something is computed, but not what.
_TECHNICAL = {
    "data": ("path",),
    "training": ("device", "threads", "checkpoint_every", "log", "engine", "cohort_chunk", "compile"),
}
_NOT_TRAINING = ("evaluate", "publish")
_LAST_ROUNDS = 10
METHOD = "method"  #: the axis of a sweep whose choices are compared with each other; the other axes make cells


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation; of one number the deviation is not known."""

    mean: float
    deviation: float | None
    count: int = 1

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """Return those of some numbers."""
        deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
        return cls(statistics.fmean(numbers), deviation, len(numbers))

    def shown(self, scale: float = 1.0, form: str = ".2f") -> str:
        """Return it as people write it, times `scale`, each number in this format."""
        deviation = "" if self.deviation is None else f" ± {scale * self.deviation:{form}}"
        return f"{scale * self.mean:{form}}{deviation}"


@dataclass(frozen=True)
class Experiment:
    """Runs of one recipe with different seeds."""

    recipe: Mapping[str, Any]
    runs: Mapping[int, RunRecord]  #: by seed
    choices: Mapping[str, str] = field(default_factory=dict)  #: axis → choice, where a sweep made it

    @property
    def name(self) -> str:
        """The name that its recipe has."""
        return str(self.recipe["name"])

    @property
    def preset(self) -> str:
        """Whose settings its recipe says that these are; '' where it says nothing."""
        return str(self.recipe.get("preset") or "")

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that change the model, in their order."""
        names = (next(iter(stage)) for stage in self.recipe["stages"])
        return tuple(name for name in names if name not in _NOT_TRAINING)

    @property
    def method(self) -> str:
        """What the sweep calls its method, else its stages."""
        return self.choices.get(METHOD) or ", ".join(self.stages)

    @property
    def cell(self) -> tuple[tuple[str, str], ...]:
        """Its choices on all axes but the method: experiments of one cell are compared with each other."""
        if self.choices:
            return tuple((axis, choice) for axis, choice in self.choices.items() if axis != METHOD)
        kept = comparable(self.recipe)
        return (("setting", json.dumps({key: kept[key] for key in ("data", "model", "training")}, sort_keys=True)),)

    @property
    def metric(self) -> Metric:
        """The metric of its task that decides; that of a classification is the accuracy."""
        return next(iter(self.runs.values())).metric

    @cached_property
    def curves(self) -> dict[int, dict[int, float]]:
        """Seed → round → this metric of the global model on the test data, for the rounds that were evaluated."""
        key = self.metric.key
        return {
            seed: {line["round"]: line[key] for line in run.metrics if line.get(key) is not None}
            for seed, run in self.runs.items()
        }

    @cached_property
    def points(self) -> list[tuple[int, Spread]]:
        """The rounds that all its runs evaluated, and the spread over these runs."""
        first, *others = self.curves.values()
        shared = [round for round in first if all(round in other for other in others)]
        return [(round, Spread.of([curve[round] for curve in self.curves.values()])) for round in shared]

    @property
    def rounds(self) -> str:
        """How many rounds its runs have; from and to, where they differ."""
        lengths = sorted({len(run.metrics) for run in self.runs.values()})
        return "-".join(map(str, dict.fromkeys((lengths[0], lengths[-1]))))

    @cached_property
    def finished(self) -> frozenset[int]:
        """The seeds whose runs have their last round."""
        return frozenset(seed for seed, run in self.runs.items() if run.is_finished)

    @property
    def last(self) -> Spread:
        """The metric after the last round."""
        return Spread.of([curve[max(curve)] for curve in self.curves.values()])

    @property
    def final(self) -> Spread:
        """The mean of the metric over the last ten rounds, which varies less than that of the last one."""
        return Spread.of(list(self.final_by_seed.values()))

    @property
    def final_by_seed(self) -> dict[int, float]:
        """Seed → mean of the metric over those of the last ten rounds that were evaluated."""
        return {seed: self._final(self.curves[seed], len(run.metrics)) for seed, run in self.runs.items()}

    @staticmethod
    def _final(curve: Mapping[int, float], rounds: int) -> float:
        late = [value for round, value in curve.items() if round > rounds - _LAST_ROUNDS]
        return statistics.fmean(late or [curve[max(curve)]])

    @property
    def best(self) -> Spread:
        """The metric on the test data after the best round of each run, which validation data chose where there are."""
        return Spread.of([run.best_line[self.metric.key] for run in self.runs.values()])

    def over_clients(self, kind: str) -> Spread | None:
        """Return the mean, deviation or worst decile of the metric over the clients' own held-out parts, in the last
        evaluated round of each run; None where a run did not measure it.
        """
        key = f"client_{self.metric.name}_{kind}"
        last = [run.metrics[max(self.curves[seed]) - 1].get(key) for seed, run in self.runs.items()]
        found = [value for value in last if value is not None]
        return Spread.of(found) if len(found) == len(last) else None

    def rounds_to(self, target: float) -> list[int]:
        """Return, for each run that reaches this value of the metric, the round that does."""
        metric = self.metric
        first = (
            next((round for round, found in curve.items() if not metric.is_better(target, found)), None)
            for curve in self.curves.values()
        )
        return [round for round in first if round is not None]

    @property
    def bytes_a_round(self) -> float | None:
        """The mean of the bytes that a round sends to its clients and gets back; None where it was not recorded."""
        counts = [
            line["bytes_down"] + line["bytes_up"]
            for run in self.runs.values()
            for line in run.metrics
            if "bytes_down" in line and "bytes_up" in line
        ]
        return statistics.fmean(counts) if counts else None


@dataclass(frozen=True)
class Study:
    """Experiments, and published numbers to compare them with."""

    experiments: tuple[Experiment, ...]
    published: tuple[PublishedNumber, ...] = ()
    axes: tuple[str, ...] = ()  #: of the sweeps that it was read from
    sweeps: tuple[str, ...] = ()  #: their names

    def published_for(self, choices: Mapping[str, str]) -> PublishedNumber | None:
        """Return the published number for these choices, if there is one."""
        found = (p for p in self.published if p.choices and p.choices.items() <= choices.items())
        return next(found, None)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that decide in its experiments, each once."""
        return tuple(dict.fromkeys(experiment.metric for experiment in self.experiments))

    @property
    def cells(self) -> dict[tuple[tuple[str, str], ...], list[Experiment]]:
        """The experiments, cell by cell."""
        found: dict[tuple[tuple[str, str], ...], list[Experiment]] = {}
        for experiment in self.experiments:
            found.setdefault(experiment.cell, []).append(experiment)
        return found


def read_study(folders: Sequence[Path]) -> Study:
    """Read run folders, what `publish` stages wrote, and sweep folders, of which runs without an evaluated round are
    left out.

    Raises RunError for a folder that holds none of these, and where a recipe comes twice with one seed.
    """
    found: dict[str, Experiment] = {}
    published: list[PublishedNumber] = []
    axes: dict[str, None] = {}
    sweeps: list[str] = []
    for folder in folders:
        if (folder / SWEEP_FILE).is_file():
            sweep = read_sweep_folder(folder)
            published += sweep.published
            axes |= dict.fromkeys(sweep.axes)
            sweeps.append(sweep.name)
            places = {folder / RUNS / name: run.choices for name, run in sweep.runs.items()}
            members = [(read_run(path), choices) for path, choices in places.items() if holds_run(path)]
            members = [(run, choices) for run, choices in members if _is_evaluated(run)]
            if not members:
                raise RunError(
                    f"{folder}: no run of this sweep has an evaluated round yet",
                    hint="wait for it, or resume it",
                    path=folder,
                )
        else:
            members = [(read_run(folder), {})]
        for run, choices in members:
            _add(found, run, choices)
    return Study(tuple(found.values()), tuple(published), tuple(axes), tuple(sweeps))


def _is_evaluated(run: RunRecord) -> bool:
    return any(line.get(run.metric.key) is not None for line in run.metrics)


def _add(found: dict[str, Experiment], run: RunRecord, choices: Mapping[str, str]) -> None:
    if not run.metrics:
        raise RunError(f"{run.path}: the run has no round yet", hint="`fedmr-merge run` resumes it", path=run.path)
    seed = run.recipe["seed"]
    key = json.dumps([dict(choices), comparable(run.recipe)], sort_keys=True)
    if not _is_evaluated(run):
        raise RunError(
            f"{run.path}: no round of this run has been evaluated yet",
            hint="`fedmr-merge run` resumes it",
            path=run.path,
        )
    known = found.get(key)
    if known is None:
        found[key] = Experiment(run.recipe, {seed: run}, choices)
    elif seed in known.runs:
        raise RunError(
            f"{known.runs[seed].path} and {run.path} are the same recipe with the same seed, {seed}",
            hint="name one of them",
        )
    else:
        found[key] = Experiment(known.recipe, {**known.runs, seed: run}, choices)


def comparable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a recipe an experiment: all but the seed and what cannot change its outcome by much."""
    kept = {
        key: {option: value for option, value in recipe[key].items() if option not in _TECHNICAL.get(key, ())}
        for key in ("data", "model", "training")
    }
    stages = [stage for stage in recipe["stages"] if next(iter(stage)) not in _NOT_TRAINING]
    return {"name": recipe["name"], **kept, "stages": stages}


def differing_options(experiments: Sequence[Experiment]) -> list[str]:
    """Return, for each experiment, the options that another has, too, with another value."""
    flat = [dict(_flat(comparable(experiment.recipe))) for experiment in experiments]
    columns = ("name", "data.name", "model.name")
    return [
        ", ".join(
            f"{path}={value}"
            for path, value in own.items()
            if path not in columns and any(path in other and other[path] != value for other in flat)
        )
        for own in flat
    ]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{number}]")
    else:
        yield path, json.dumps(value) if not isinstance(value, str) else value
