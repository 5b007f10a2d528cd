"""Figures: the numbers that were given, on white, the same bytes every time, legible for many clients and classes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from fedmr_merge.report.curves import draw_curves
from fedmr_merge.report.partition import draw_partition

ROOT = Path(__file__).parents[2]


def metrics(*accuracies: float, stages: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    stages = stages or (1,) * len(accuracies)
    return [
        {"round": round, "stage": stage, "method": f"method{stage}", "test_accuracy": accuracy}
        for round, (accuracy, stage) in enumerate(zip(accuracies, stages, strict=True), start=1)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of every figure that is saved."""
    found: list[Axes] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        found.extend(figure.axes)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return found


def test_curve_shows_every_round_in_percent(tmp_path: Path, drawn: list[Axes]) -> None:
    draw_curves(metrics(0.1, 0.5, 0.25), tmp_path / "a.png", title="t")
    [axes] = drawn
    [line] = axes.lines
    np.testing.assert_array_equal(line.get_xydata(), [[1, 10], [2, 50], [3, 25]])
    assert [text.get_text() for text in axes.texts] == ["25.0 %"]
    assert axes.get_ylim() == (0, 100)
    assert (axes.get_title(), axes.get_xlabel()) == ("t", "round")


@pytest.mark.parametrize(
    ("accuracies", "bottom"),
    [
        ((0.1,) * 7, 0),
        ((0.1, 0.5, 0.8, 0.9, 0.95, 0.96, 0.97, 0.96), 90),
        ((0.1,) * 4 + (0.5,) * 4, 20),
        ((0.1,) * 9, 0),
    ],
)
def test_axis_shows_the_last_rounds(
    tmp_path: Path, drawn: list[Axes], accuracies: tuple[float, ...], bottom: float
) -> None:
    draw_curves(metrics(*accuracies), tmp_path / "a.png", title="t")
    assert drawn[0].get_ylim() == (bottom, 100)
    box, room = drawn[0].texts[0].get_window_extent(), drawn[0].get_window_extent()
    assert room.y0 <= box.y0 < box.y1 <= room.y1


def test_stages_are_shaded_where_they_are(tmp_path: Path, drawn: list[Axes]) -> None:
    draw_curves(metrics(0.1, 0.2, 0.3, 0.4, 0.5, stages=(1, 1, 2, 3, 3)), tmp_path / "a.png", title="t")
    [axes] = drawn
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]  # type: ignore[attr-defined]
    assert spans == [(0.5, 2.5), (2.5, 3.5), (3.5, 5.5)]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["method1", "method2", "method3"]


def test_one_round_is_a_mark_that_can_be_seen(tmp_path: Path, drawn: list[Axes]) -> None:
    draw_curves(metrics(0.5), tmp_path / "a.png", title="t")
    assert drawn[0].lines[0].get_marker() == "o"


@pytest.mark.parametrize("last", [0.0, 0.5, 0.89, 0.91, 1.0])
def test_last_accuracy_stands_within_the_axes(tmp_path: Path, drawn: list[Axes], last: float) -> None:
    draw_curves(metrics(0.5, 0.5, last), tmp_path / "a.png", title="t")
    [axes] = drawn
    box, room = axes.texts[0].get_window_extent(), axes.get_window_extent()
    assert room.y0 <= box.y0 < box.y1 <= room.y1


def test_bars_are_the_counts(tmp_path: Path, drawn: list[Axes]) -> None:
    counts = [[3, 0, 1], [0, 5, 2]]
    draw_partition(counts, ["a", "b", "c"], tmp_path / "a.png", title="t")
    [axes] = drawn
    bars = [[(bar.get_x() + 0.425, bar.get_y(), bar.get_height()) for bar in c] for c in axes.containers]  # type: ignore
    assert bars == [[(0, 0, 3)], [(1, 0, 5)], [(0, 3, 1), (1, 5, 2)]], "client, from, how many"
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]


def test_picture_of_many_clients_shows_the_counts(tmp_path: Path, drawn: list[Axes]) -> None:
    counts = [[3, 0, 1] if client % 2 else [0, 2, 0] for client in range(400)]
    draw_partition(counts, ["a", "b", "c"], tmp_path / "a.png", title="t")
    [axes] = drawn
    [image] = axes.images
    picture = np.asarray(image.get_array())
    assert picture.shape == (600, 400, 4)
    assert list(image.get_extent()) == [-0.5, 399.5, 0, 4]
    legend = axes.get_legend()
    assert legend is not None
    a, b, c = (patch.get_facecolor() for patch in legend.get_patches())
    white = (1, 1, 1, 1)
    for client, column in ((0, [b] * 300 + [white] * 300), (1, [a] * 450 + [c] * 150)):
        np.testing.assert_array_equal(picture[:, client], column)


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (2, 10), (60, 10), (3, 13), (4, 100), (301, 10), (3400, 62)])
def test_many_clients_and_classes(tmp_path: Path, drawn: list[Axes], clients: int, classes: int) -> None:
    counts, names = np.ones((clients, classes), int).tolist(), [f"c{i}" for i in range(classes)]
    draw_partition(counts, names, tmp_path / "a.png", title="t")
    [axes] = drawn
    assert (axes.get_legend() is not None) == (classes <= 12), "a longer legend would be all there is to see"
    assert (len(axes.patches) == clients * classes) == (clients <= 300)
    if axes.patches:
        colours = {patch.get_facecolor() for patch in axes.patches}
    else:
        colours = set(map(tuple, np.asarray(axes.images[0].get_array())[:, 0]))
    assert len(colours) == classes, "no two classes look alike"
    height, width, _ = imread(tmp_path / "a.png").shape
    assert width <= 14 * 144
    assert height == 4 * 144
    low, high = axes.get_xlim()
    assert low < -0.5
    assert high > clients - 0.5


def both(folder: Path) -> list[Path]:
    draw_curves(metrics(0.1, 0.2, stages=(1, 2)), folder / "curves.png", title="t")
    draw_partition([[1, 2], [3, 4]], ["a", "b"], folder / "partition.png", title="t")
    return [folder / "curves.png", folder / "partition.png"]


def test_background_is_white_and_not_transparent(tmp_path: Path) -> None:
    for path in both(tmp_path):
        pixels = imread(path)
        assert (pixels[:, :, 3] == 1).all() if pixels.shape[2] == 4 else True
        edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edges == 1).all()


def test_same_numbers_give_the_same_bytes_in_any_process_and_style(tmp_path: Path) -> None:
    """Also where the user's own matplotlib settings are others."""
    program = (
        "import matplotlib.style, sys, pathlib; sys.path.insert(0, sys.argv[2]); import test_figures; "
        "matplotlib.rcParams['savefig.transparent'] = True; matplotlib.style.use('dark_background'); "
        "test_figures.both(pathlib.Path(sys.argv[1]))"
    )
    first = [path.read_bytes() for path in both(tmp_path)]
    (tmp_path / "other").mkdir()
    command = [sys.executable, "-c", program, str(tmp_path / "other"), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run(command, check=True, env=environment)
    assert [(tmp_path / "other" / name).read_bytes() for name in ("curves.png", "partition.png")] == first
    assert b"matplotlib" not in first[0].lower()
