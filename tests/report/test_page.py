"""The page of a report, opened in a real browser where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from small_run import RECIPE, command, follow

from fedmr_merge.report.figures import class_colours

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page about two seeds of a small run that has everything a page can show."""
    folder = tmp_path_factory.mktemp("page")
    stages = [{"fedavg": {"rounds": 1}}, {"fedmr": {"rounds": 1}}, {"evaluate": {}}]
    for seed in (0, 1):
        follow(folder / str(seed), **RECIPE | {"stages": stages, "seed": seed})
    assert command("--quiet", "report", folder / "0", folder / "1", "-o", folder / "report", "--target", "0.05") == 0
    return (folder / "report" / "index.html").read_text()


def test_the_page_has_every_section_and_asks_the_network_for_nothing(page: str) -> None:
    titles = [html.unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", page)]
    assert titles == [
        *("Results", "Learning curves", "Communication", "Partition", "Classes"),
        *("Similarity of the cohort", "Who trained which layer", "Settings"),
    ]
    outside = page[: page.index("plotly.js v")] + page[page.index("const dark =") :]
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#|data:)", outside)


def test_every_chart_is_data_that_a_program_can_read(page: str) -> None:
    charts = [json.loads(text) for text in re.findall(r'data-for="[^"]+">(.*?)</script>', page)]
    kinds = [chart["data"][0]["type"] for chart in charts]
    # Curves; partition; accuracy by class, confusion; similarity by round, by layer; who trained what.
    assert kinds == ["scatter", "bar", "bar", "heatmap", "scatter", "heatmap", "heatmap"]
    # People with any colour vision, on a page of either colour: a button that is pressed is drawn on white.
    assert [bar["marker"]["color"] for bar in charts[1]["data"]] == class_colours(10)
    (buttons,) = charts[0]["layout"]["updatemenus"]
    assert buttons["font"]["color"] == "#14181d"
    layers, trained = charts[5]["data"][0], charts[6]["data"][0]
    assert layers["y"] == trained["y"] == ["conv1", "conv2", "fc1", "fc2"]
    assert all(sorted(row) == sorted(trained["z"][0]) for row in trained["z"])  # each client's copy of a layer, once


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
@pytest.mark.parametrize("scheme", ["dark", pytest.param("light", marks=pytest.mark.slow)])
def test_a_browser_draws_every_chart_without_an_error(scheme: str, page: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(page)
    run = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'p'}"),
            *("--enable-logging=stderr", "--virtual-time-budget=20000", "--window-size=420,900", "--dump-dom"),
            *(["--force-dark-mode"] if scheme == "dark" else []),
            (tmp_path / "index.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in run.stderr  # errors and warnings of the page
    assert 'data-drawn="7"' in run.stdout
    drawn = run.stdout[: run.stdout.rindex("plotly.js v")]
    assert drawn.count('class="main-svg"') >= 7
