"""Compare runs: a table for people, one for programs, and a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmr_merge.federated.metrics import ACCURACY
from fedmr_merge.hub.inputs import public_model_name
from fedmr_merge.report.figures import LINE_STYLES, PALETTE, axis_title, draw, lowest_shown
from fedmr_merge.report.study import METHOD, Experiment, Spread, Study, differing_options
from fedmr_merge.report.verdict import Margin, cell_margin, is_contested

_OVER_CLIENTS = ("mean", "deviation", "worst_decile")

_NOT_YET = "none yet: FedMR and a baseline have no finished runs with the same seed"
VERDICT_COLUMNS = ["cell", "FedMR over", "points", "paper's points", "p (paired t-test)", "seeds", "verdict"]


def comparison_table(study: Study, target: float | None) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the table for people: accuracies in percent, mean ± standard deviation.

    Other metrics are in their own units, and a column names them. Columns that are empty in every row are left out.

    Args:
        study: The experiments, a row each.
        target: An accuracy from 0 to 1, or a value of another metric; if given, a column says in which round it is
            reached.
    """
    axes = [axis for axis in study.axes if axis != METHOD]
    usual = study.metrics == (ACCURACY,)
    unit = ", %" if usual else ""
    columns = ["run", *axes, "method", "data", "model", "options", "seeds", "rounds"]
    columns += ["metric", f"last 10 rounds{unit}", f"last round{unit}", f"best round{unit}", f"published{unit}"]
    columns += [f"over clients: {kind.replace('_', ' ')}{unit}" for kind in _OVER_CLIENTS] + ["sent a round"]
    columns += [f"rounds to {f'{100 * target:g} %' if usual else f'{target:g}'}"] if target is not None else []
    rows = []
    for experiment, options in zip(study.experiments, differing_options(study.experiments), strict=True):
        published = study.published_for(experiment.choices) if experiment.choices else None
        rows.append(
            [
                "" if experiment.choices else experiment.name,
                *(experiment.choices.get(axis, "") for axis in axes),
                experiment.method,
                str(experiment.recipe["data"]["name"]),
                str(experiment.recipe["model"]["name"]),
                "" if experiment.choices else options,
                str(len(experiment.runs)),
                experiment.rounds,
                "" if usual else experiment.metric.name,
                *(_shown(spread, experiment, usual) for spread in (experiment.final, experiment.last, experiment.best)),
                f"{published.mean:.2f} ± {published.deviation:.2f}" if published else "",
                *(_shown(experiment.over_clients(kind), experiment, usual) for kind in _OVER_CLIENTS),
                _size(experiment.bytes_a_round),
                *([_rounds_to(experiment, target)] if target is not None else []),
            ]
        )
    used = [number for number in range(len(columns)) if any(row[number] for row in rows)]
    return [columns[number] for number in used], [[row[number] for number in used] for row in rows]


def _shown(spread: Spread | None, experiment: Experiment, usual: bool) -> str:
    if spread is None:
        return ""
    metric = experiment.metric
    return spread.shown(metric.scale, metric.form) + ("" if usual else metric.unit)


def verdict_table(study: Study) -> tuple[list[str], list[list[str]]]:
    """Return a row for every cell in which FedMR and a baseline were run: its margin, measured and in the paper.

    Where they have no finished runs with the same seed, the row says so.
    """
    rows = []
    for cell, experiments in study.cells.items():
        if not is_contested(experiments):
            continue
        found = cell_margin(study, experiments)
        told = margin_row(found) if found is not None else [*[""] * (len(VERDICT_COLUMNS) - 3), "0", _NOT_YET]
        rows.append([cell_name(cell, study), *told])
    return VERDICT_COLUMNS, rows


def cell_name(cell: Sequence[tuple[str, str]], study: Study) -> str:
    """Return how people call a cell."""
    return ", ".join(choice for _, choice in cell) if study.axes else "these runs"


def margin_row(found: Margin) -> list[str]:
    """Return the cells of a row about a margin, after the name of its cell."""
    form = found.metric.form
    deviation = "" if found.deviation is None else f" ± {found.deviation:{form}}"
    return [
        found.baseline,
        f"{found.points:+{form}}{deviation}",
        "" if found.published_points is None else f"{found.published_points:+.2f} over {found.published_baseline}",
        "" if found.p_value is None else f"{found.p_value:.3g}",
        str(len(found.seeds)),
        found.verdict,
    ]


def _size(nbytes: float | None) -> str:
    return "" if nbytes is None else f"{nbytes / 1e6:.2f} MB"


def _rounds_to(experiment: Experiment, target: float) -> str:
    reached, runs = experiment.rounds_to(target), len(experiment.curves)
    if not reached:
        return "not reached"
    return Spread.of(reached).shown(form=".1f") + (f" ({len(reached)} of {runs} runs)" if len(reached) < runs else "")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def comparison_csv(study: Study) -> str:
    """Return the metrics for programs, one line for each run: in full precision, shares from 0 to 1."""
    axes = [axis for axis in study.axes if axis != METHOD]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = ("run", *axes, "method", "stages", "data", "model", "options", "preset", "seed", "rounds")
    writer.writerow((*head, "metric", "last10", "last", "best", "best_round", "bytes_a_round", *_VERSIONS))
    for experiment, options in zip(study.experiments, differing_options(study.experiments), strict=True):
        recipe = experiment.recipe
        model = public_model_name(str(recipe["model"]["name"]))
        described = (experiment.method, " ".join(experiment.stages), recipe["data"]["name"], model)
        cells = [experiment.choices.get(axis, "") for axis in axes]
        settings = ("" if experiment.choices else options, experiment.preset)
        for seed, curve in sorted(experiment.curves.items()):
            run = experiment.runs[seed]
            best, best_round, rounds = run.best_line[run.metric.key], run.best_line["round"], len(run.metrics)
            writer.writerow(
                (
                    *(experiment.name, *cells, *described, *settings, seed, rounds),
                    *(experiment.metric.name, experiment.final_by_seed[seed], curve[max(curve)], best, best_round),
                    experiment.bytes_a_round if experiment.bytes_a_round is not None else "",
                    *_versions(experiment.runs[seed].environment),
                )
            )
    return stream.getvalue()


_VERSIONS = ("fedmr_merge", "torch", "device")


def _versions(environment: Mapping[str, object] | None) -> list[object]:
    if environment is None:
        return ["" for _ in _VERSIONS]
    packages = environment.get("packages")
    flat = {**environment, **(packages if isinstance(packages, Mapping) else {})}
    return [flat.get(name, "") for name in _VERSIONS]


def curves_csv(study: Study, every: int = 10) -> str:
    """Return the learning curves for programs, a line for each run and every tenth round, and its last one.

    Each metric that decides in an experiment has a column. Of runs that were not evaluated in every round, all
    evaluated rounds have a line.
    """
    metrics = study.metrics
    axes = [axis for axis in study.axes if axis != METHOD]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("run", *axes, "method", "seed", "round", *(metric.key for metric in metrics)))
    for experiment in study.experiments:
        head = (experiment.name, *(experiment.choices.get(axis, "") for axis in axes), experiment.method)
        for seed, curve in sorted(experiment.curves.items()):
            sparse = len(curve) < len(experiment.runs[seed].metrics)
            for round, value in curve.items():
                if sparse or round % every == 0 or round == max(curve):
                    values = (value if metric == experiment.metric else "" for metric in metrics)
                    writer.writerow((*head, seed, round, *values))
    return stream.getvalue()


def draw_comparison(study: Study, path: Path) -> None:
    """Draw each experiment's mean accuracy, or other metric, against rounds, its standard deviation as a band, as PNG.

    The axis is chosen so that the later rounds can be distinguished. Rounds that not all runs of an experiment have are
    left out. Colours repeat after eight experiments with another kind of line, and the legend stands beside the curves.
    """
    from matplotlib.ticker import MaxNLocator

    experiments, shown = study.experiments, list[list[float]]()
    with draw(path, 9.0, max(4.0, 0.25 * min(len(experiments), 40))) as axes:
        for number, (experiment, options) in enumerate(zip(experiments, differing_options(experiments), strict=True)):
            rounds, scale = [round for round, _ in experiment.points], experiment.metric.scale
            means = [scale * spread.mean for _, spread in experiment.points]
            shown.append(means)
            bands = [scale * (spread.deviation or 0.0) for _, spread in experiment.points]
            colour, style = PALETTE[number % len(PALETTE)], LINE_STYLES[number // len(PALETTE) % len(LINE_STYLES)]
            axes.plot(
                rounds,
                means,
                color=colour,
                linestyle=style,
                linewidth=1.6,
                marker="o" if len(means) < 3 else None,
                label=_label(experiment, options),
            )
            lower, upper = ([mean + sign * band for mean, band in zip(means, bands, strict=True)] for sign in (-1, 1))
            axes.fill_between(rounds, lower, upper, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="round", ylabel=axis_title(study.metrics))
        if all(metric.is_share for metric in study.metrics):
            axes.set_ylim(lowest_shown(shown), 100)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, fontsize="small")


def _label(experiment: Experiment, options: str) -> str:
    if experiment.choices:
        return ", ".join(experiment.choices.values())
    return f"{experiment.name}: {experiment.method}{', ' + options if options else ''}"
