"""Which client holds how many examples of which class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedmr_merge.report.figures import new_figure, save_figure

_MAX_NAMED_CLASSES = 12


def draw_partition(
    class_counts: Sequence[Sequence[int]], class_names: Sequence[str], path: Path, *, title: str
) -> None:
    """Draw one bar a client, divided by class, as PNG. `class_counts[client][class]` is a number of examples."""
    import matplotlib as mpl
    from matplotlib.ticker import MaxNLocator

    clients = range(len(class_counts))
    figure, axes = new_figure(min(7.0 + 0.04 * len(class_counts), 14.0), 4.0)
    colours = mpl.colormaps["tab10" if len(class_names) <= 10 else "turbo"]
    bottom = [0] * len(class_counts)
    for index, name in enumerate(class_names):
        heights = [counts[index] for counts in class_counts]
        shade = index if len(class_names) <= 10 else index / (len(class_names) - 1)
        axes.bar(clients, heights, bottom=bottom, width=0.85, color=colours(shade), label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set(xlabel="client", ylabel="training examples", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.7, len(class_counts) - 0.3)
    if len(class_names) <= _MAX_NAMED_CLASSES:
        axes.legend(title="class", ncols=1, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
    save_figure(figure, path)
