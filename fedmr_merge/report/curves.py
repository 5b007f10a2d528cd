"""Learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmr_merge.federated.metrics import ACCURACY, Metric
from fedmr_merge.report.figures import axis_title, draw, lowest_shown

_SHADES = ("#dfe8f3", "#f6e3d3", "#e2efda", "#f0e1ee")


def draw_curves(metrics: Sequence[Mapping[str, Any]], path: Path, *, title: str, metric: Metric = ACCURACY) -> None:
    """Draw test accuracy, or another metric, against rounds, stages shaded, as PNG.

    The axis of a share is chosen so that the later rounds can be distinguished; the first ones may be below it.
    `metrics` are the lines of a run's metrics.jsonl: `round`, `stage`, `method`, and the metric where a round was
    evaluated.
    """
    from matplotlib.ticker import MaxNLocator

    evaluated = [line for line in metrics if line.get(metric.key) is not None]
    rounds = [line["round"] for line in evaluated]
    values = [metric.scale * line[metric.key] for line in evaluated]
    lowest = lowest_shown([values])
    with draw(path, 7.0, 4.0) as axes:
        for shade, (method, first, last) in enumerate(_stages(metrics)):
            axes.axvspan(first - 0.5, last + 0.5, color=_SHADES[shade % len(_SHADES)], linewidth=0, label=method)
        axes.plot(rounds, values, color="#1f3b64", linewidth=1.6, marker="o" if len(rounds) < 3 else None)
        axes.annotate(
            f"{values[-1]:.1f} %" if metric.is_share else f"{values[-1]:.4g}",
            (rounds[-1], values[-1]),
            textcoords="offset points",
            # A curve of accuracies comes from below, so that there is room above it, except at the top of the axes.
            xytext=(-4, 8 if not metric.is_share or values[-1] - lowest < 0.9 * (100 - lowest) else -16),
            ha="right",
            color="#1f3b64",
            bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1.5},  # it may lie over the curve
        )
        axes.set(xlabel="round", ylabel=axis_title((metric,)), title=title)
        axes.set_xlim(metrics[0]["round"] - 0.5, metrics[-1]["round"] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if metric.is_share:
            axes.set_ylim(lowest, 100.0)
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
        axes.legend(loc="lower right" if metric.higher_is_better else "upper right", title="stage")


def _stages(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """Return (method, first round, last round) of every stage."""
    found: list[tuple[str, int, int]] = []
    last_stage: Any = None
    for line in metrics:
        if found and line["stage"] == last_stage:
            found[-1] = (found[-1][0], found[-1][1], line["round"])
        else:
            found.append((line["method"], line["round"], line["round"]))
        last_stage = line["stage"]
    return found
