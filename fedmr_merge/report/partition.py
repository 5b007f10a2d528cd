"""Which client holds how many examples of which class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmr_merge.report.figures import class_colours, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_NAMED_CLASSES = 12
_MAX_BARS = 300  # of more clients a bar would be a pixel wide, and all bars would take minutes to draw
_HALF_BAR = 0.425  # of the distance between two clients
_ROWS = 600  # of the picture that takes the place of the bars; as many as the axes have pixels


def draw_partition(
    class_counts: Sequence[Sequence[int]], class_names: Sequence[str], path: Path, *, title: str
) -> None:
    """Draw one bar a client, divided by class, as PNG. `class_counts[client][class]` is a number of examples."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    counts = np.asarray(class_counts, dtype=np.int64)
    clients, classes = counts.shape
    colours = [to_rgba(colour) for colour in class_colours(classes)]
    with draw(path, min(7.0 + 0.04 * clients, 14.0), 4.0) as axes:
        (_draw_bars if clients <= _MAX_BARS else _draw_picture)(axes, counts, np.array(colours))
        axes.set(xlabel="client", ylabel="training examples", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(-0.7, clients - 0.3)
        axes.set_ylim(0, 1.05 * counts.sum(axis=1).max())
        if classes <= _MAX_NAMED_CLASSES:
            handles = [Patch(color=colour, label=name) for colour, name in zip(colours, class_names, strict=True)]
            axes.legend(handles=handles, title="class", loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")


def _draw_bars(axes: Axes, counts: NDArray[np.int64], colours: NDArray[np.float64]) -> None:
    clients = range(len(counts))
    bottom = np.zeros(len(counts), dtype=np.int64)
    for heights, colour in zip(counts.T, colours, strict=True):
        held = [client for client in clients if heights[client]]
        axes.bar(held, heights[held], bottom=bottom[held], width=2 * _HALF_BAR, color=colour)
        bottom = bottom + heights


def _draw_picture(axes: Axes, counts: NDArray[np.int64], colours: NDArray[np.float64]) -> None:
    tops = counts.cumsum(axis=1)
    highest = tops.max()
    levels = (np.arange(_ROWS) + 0.5) / _ROWS * highest
    # Above a client's last example lies one class more: white.
    found = np.stack([np.searchsorted(top, levels, side="right") for top in tops], axis=1)
    picture = np.vstack([colours, np.ones((1, 4))])[found]
    extent = (-0.5, len(counts) - 0.5, 0.0, float(highest))
    axes.imshow(picture, extent=extent, origin="lower", aspect="auto", interpolation="nearest")
