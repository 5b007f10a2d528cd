"""Compare runs: those that differ in their seed alone are one experiment, with mean and standard deviation."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmr_merge.errors import RunError
from fedmr_merge.report.figures import draw
from fedmr_merge.runs.record import read_run

#: Options that say where and how fast something is computed, but not what.
_TECHNICAL = {
    "data": ("path",),
    "training": ("device", "threads", "checkpoint_every", "engine", "cohort_chunk", "compile"),
}
_NOT_TRAINING = ("evaluate", "publish")
_COLOURS = ("#1f3b64", "#c8553d", "#4f8a5b", "#8d5a97", "#d8a031", "#3f9aa8", "#7a6a58", "#b3446c")


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation; of one number the deviation is not known."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """Return those of some numbers."""
        return cls(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)

    def told(self, scale: float = 1.0, digits: int = 2) -> str:
        """Return it as people write it, times `scale`."""
        deviation = "" if self.deviation is None else f" ± {scale * self.deviation:.{digits}f}"
        return f"{scale * self.mean:.{digits}f}{deviation}"


@dataclass(frozen=True)
class Experiment:
    """Runs of one recipe with different seeds."""

    recipe: Mapping[str, Any]
    curves: Mapping[int, tuple[float, ...]]  #: seed → test accuracy of the global model after each round, 0 to 1

    @property
    def name(self) -> str:
        return str(self.recipe["name"])

    @property
    def method(self) -> str:
        """The stages that change the model, in their order."""
        names = [next(iter(stage)) for stage in self.recipe["stages"]]
        return ", ".join(name for name in names if name not in _NOT_TRAINING)

    @property
    def rounds(self) -> str:
        """How many rounds its runs have; from, to where they differ."""
        lengths = sorted({len(curve) for curve in self.curves.values()})
        return "-".join(map(str, dict.fromkeys((lengths[0], lengths[-1]))))

    @property
    def last(self) -> Spread:
        """The accuracy after the last round."""
        return Spread.of([curve[-1] for curve in self.curves.values()])

    @property
    def best(self) -> Spread:
        """The accuracy after the best round of each run."""
        return Spread.of([max(curve) for curve in self.curves.values()])

    def rounds_to(self, target: float) -> list[int]:
        """Return, for each run that reaches this accuracy, the round that does."""
        first = (next((i for i, found in enumerate(c, start=1) if found >= target), None) for c in self.curves.values())
        return [round for round in first if round is not None]


def read_experiments(folders: Sequence[Path]) -> list[Experiment]:
    """Read run folders, or what their `publish` stages wrote, and put together those that differ in their seed alone.

    Raises RunError for a folder that holds no run, and where a recipe comes twice with one seed.
    """
    found: dict[str, tuple[dict[str, Any], dict[int, tuple[float, ...]], dict[int, Path]]] = {}
    for folder in folders:
        recipe, curve = _read(folder)
        key = json.dumps(_experiment(recipe), sort_keys=True)
        _, curves, places = found.setdefault(key, (recipe, {}, {}))
        seed = recipe["seed"]
        if seed in curves:
            raise RunError(
                f"{places[seed]} and {folder} are the same recipe with the same seed, {seed}", hint="name one of them"
            )
        curves[seed], places[seed] = curve, folder
    return [Experiment(recipe, curves) for recipe, curves, _ in found.values()]


def _read(folder: Path) -> tuple[dict[str, Any], tuple[float, ...]]:
    run = read_run(folder)
    curve = tuple(float(line["test_accuracy"]) for line in run.metrics)
    if not curve:
        raise RunError(f"{folder}: the run has no round yet", hint="`fedmr-merge run` resumes it")
    return run.recipe, curve


def _experiment(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a recipe an experiment: all but the seed and what cannot change its outcome by much."""
    kept = {
        key: {option: value for option, value in recipe[key].items() if option not in _TECHNICAL.get(key, ())}
        for key in ("data", "model", "training")
    }
    stages = [stage for stage in recipe["stages"] if next(iter(stage)) not in _NOT_TRAINING]
    return {"name": recipe["name"], **kept, "stages": stages}


def differing_options(experiments: Sequence[Experiment]) -> list[str]:
    """Return, for each experiment, the options that another has, too, with another value."""
    flat = [dict(_flat(_experiment(experiment.recipe))) for experiment in experiments]
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


def comparison_table(experiments: Sequence[Experiment], target: float | None) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the table for people: accuracies in percent, mean ± standard deviation."""
    columns = ["run", "method", "data", "model", "options", "seeds", "rounds", "last round, %", "best round, %"]
    columns += [f"rounds to {100 * target:g} %"] if target is not None else []
    rows = []
    for experiment, options in zip(experiments, differing_options(experiments), strict=True):
        row = [
            experiment.name,
            experiment.method,
            experiment.recipe["data"]["name"],
            experiment.recipe["model"]["name"],
        ]
        row += [options, str(len(experiment.curves)), experiment.rounds]
        row += [experiment.last.told(100), experiment.best.told(100)]
        rows.append(row + ([_told_rounds(experiment, target)] if target is not None else []))
    if not any(row[4] for row in rows):
        return columns[:4] + columns[5:], [row[:4] + row[5:] for row in rows]
    return columns, rows


def _told_rounds(experiment: Experiment, target: float) -> str:
    reached, runs = experiment.rounds_to(target), len(experiment.curves)
    if not reached:
        return "not reached"
    return Spread.of(reached).told(digits=1) + (f" ({len(reached)} of {runs} runs)" if len(reached) < runs else "")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def comparison_csv(experiments: Sequence[Experiment]) -> str:
    """Return the accuracies for programs, one line for each run: 0 to 1, in full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("run", "method", "data", "model", "options", "seed", "rounds", "last", "best", "best_round"))
    for experiment, options in zip(experiments, differing_options(experiments), strict=True):
        recipe = experiment.recipe
        head = (experiment.name, experiment.method, recipe["data"]["name"], recipe["model"]["name"], options)
        for seed, curve in sorted(experiment.curves.items()):
            writer.writerow((*head, seed, len(curve), curve[-1], max(curve), 1 + curve.index(max(curve))))
    return stream.getvalue()


def draw_comparison(experiments: Sequence[Experiment], path: Path) -> None:
    """Draw each experiment's mean test accuracy against rounds, its standard deviation as a band, as PNG.

    Rounds that not all runs of an experiment have are left out.
    """
    from matplotlib.ticker import MaxNLocator

    with draw(path, 7.0, 4.0) as axes:
        for number, (experiment, options) in enumerate(zip(experiments, differing_options(experiments), strict=True)):
            spreads = [Spread.of(found) for found in zip(*experiment.curves.values(), strict=False)]
            rounds = range(1, len(spreads) + 1)
            means = [100 * spread.mean for spread in spreads]
            bands = [100 * (spread.deviation or 0.0) for spread in spreads]
            colour = _COLOURS[number % len(_COLOURS)]
            label = f"{experiment.name}: {experiment.method}{', ' + options if options else ''}"
            axes.plot(rounds, means, color=colour, linewidth=1.6, marker="o" if len(spreads) < 3 else None, label=label)
            lower, upper = ([mean + sign * band for mean, band in zip(means, bands, strict=True)] for sign in (-1, 1))
            axes.fill_between(rounds, lower, upper, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel="round", ylabel="test accuracy of the global model (%)", ylim=(0, 100))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
        axes.legend(loc="lower right", fontsize="small")
