"""What all figures share: PNG on white, drawn without a screen, the same bytes for the same numbers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmr_merge.federated.metrics import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Eight colours that people with any colour vision can distinguish (Okabe and Ito, 2008), on white and on black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A", "#B8A600")
_CLASS_COLOURS = (*PALETTE, "#332288", "#882255")  #: ten, as many as most small data sets have classes
_FEW_ROUNDS = 8
LINE_STYLES = ("-", "--", ":", "-.")  #: after eight experiments the next kind of line


def class_colours(count: int) -> list[str]:
    """Return a colour for each class; of many classes neighbours differ in lightness, which everybody can see."""
    if count <= len(_CLASS_COLOURS):
        return list(_CLASS_COLOURS[:count])
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    return [to_hex(mpl.colormaps["viridis"](index / (count - 1))) for index in range(count)]


def lowest_shown(curves: Iterable[Sequence[float]]) -> float:
    """Return where an axis of accuracies in percent begins, so that the last rounds can be distinguished: below the
    later half of every curve, by half of what is above it.
    """
    lowest = 100.0
    for curve in curves:
        if len(curve) < _FEW_ROUNDS:
            return 0.0
        lowest = min(lowest, *curve[len(curve) // 2 :])
    return max(0.0, 10 * math.floor((lowest - (100 - lowest) / 2) / 10))


@contextlib.contextmanager
def draw(path: Path, width_inches: float, height_inches: float) -> Iterator[Axes]:
    """Give axes to draw on; the figure is written as PNG when the block ends.

    Only the numbers decide the bytes: the user's own settings of matplotlib count for nothing and stay as they are, and
    the file does not say which version wrote it.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width_inches, height_inches), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.subplots()
        figure.savefig(path, format="png", dpi=144, metadata={"Software": None})


def axis_title(metrics: Sequence[Metric]) -> str:
    """Return what an axis shows of these metrics, e.g. `test accuracy of the global model (%)`."""
    unit = " (%)" if all(metric.is_share for metric in metrics) else ""
    return f"test {' or '.join(metric.name for metric in metrics)} of the global model{unit}"
