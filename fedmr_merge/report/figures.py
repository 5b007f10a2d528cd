"""What all figures share: PNG on white, drawn without a screen, the same bytes for the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width_inches: float, height_inches: float) -> tuple[Figure, Axes]:
    """Return an empty figure; no global state of matplotlib is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; without the version of the library in it, so that only the numbers decide the bytes."""
    figure.savefig(path, format="png", dpi=144, metadata={"Software": None})
