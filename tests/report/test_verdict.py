"""FedMR's margin over the best baseline, on accuracies that are written by hand."""

from __future__ import annotations

import csv
import json
import math
import runpy
import sys
from pathlib import Path

import pytest
from scipy.stats import t as student
from small_run import write_run

from fedmr_merge.report.comparison import comparison_table, verdict_table
from fedmr_merge.report.study import Study, read_study
from fedmr_merge.report.verdict import Scores, cell_margin, margin

STAGES = {
    "FedAvg": [{"fedavg": {"rounds": 4}}],
    "SCAFFOLD": [{"scaffold": {"rounds": 4}}],
    "FedMR w/o MR": [{"independent": {"rounds": 4}}],
    "FedMR": [{"fedmr": {"rounds": 4}}],
}


def study(folder: Path, accuracies: dict[str, list[float]], published: dict[str, float], *, rounds: int = 4) -> Study:
    """Write a sweep with one cell: method → the accuracy of each seed, in percent."""
    runs = {}
    for method, found in accuracies.items():
        for seed, accuracy in enumerate(found):
            name = f"{method.replace(' ', '-').replace('/', '-')}_seed{seed}"
            write_run(folder / "runs" / name, *[accuracy / 100] * rounds, seed=seed, stages=STAGES[method])
            runs[name] = {"choices": {"alpha": "alpha=0.5", "method": method}, "seed": seed}
    numbers = [
        {"choices": {"alpha": "alpha=0.5", "method": m}, "mean": mean, "deviation": 0.5}
        for m, mean in published.items()
    ]
    description = {"name": "hand", "axes": {"alpha": ["alpha=0.5"], "method": list(STAGES)}, "published": numbers}
    (folder / "sweep.json").write_text(json.dumps(description | {"runs": runs}))
    return read_study([folder])


def test_the_margin_is_over_the_best_method_with_one_model(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        {"FedAvg": [50, 52, 51], "SCAFFOLD": [52, 53, 54], "FedMR w/o MR": [90, 90, 90], "FedMR": [57, 59, 58]},
        {"FedAvg": 52.0, "SCAFFOLD": 54.0, "FedMR": 60.0, "MOON": 59.0},
    )
    [cell] = found.cells.values()
    result = cell_margin(found, cell)
    assert result is not None
    assert (result.fedmr, result.baseline, result.seeds) == ("FedMR", "SCAFFOLD", (0, 1, 2))
    assert result.points == pytest.approx(5.0)
    # MOON was published, but not run: it is no yardstick here.
    assert (result.published_baseline, result.published_points) == ("SCAFFOLD", 6.0)
    differences = [5.0, 6.0, 4.0]
    statistic = 5.0 / (1.0 / math.sqrt(3))
    assert result.deviation == pytest.approx(1.0)
    assert result.p_value == pytest.approx(2 * student.sf(statistic, len(differences) - 1))
    assert result.verdict == "agrees with the paper: the same sign, and at least half of the margin"


@pytest.mark.parametrize(
    ("fedmr", "published", "verdict"),
    [
        (52.9, {"FedAvg": 50.0, "FedMR": 56.0}, "agrees with the paper in the sign alone"),
        (49.0, {"FedAvg": 50.0, "FedMR": 56.0}, "does not agree with the paper: the sign differs"),
        (53.0, {"FedAvg": 50.0, "FedMR": 56.0}, "agrees with the paper: the same sign, and at least half"),
        (53.0, {}, "FedMR is ahead; no published number"),
        (49.0, {"FedAvg": 50.0}, "FedMR is not ahead; no published number"),
    ],
)
def test_the_verdict(fedmr: float, published: dict[str, float], verdict: str, tmp_path: Path) -> None:
    found = study(tmp_path, {"FedAvg": [50.0], "FedMR": [fedmr]}, published)
    columns, [row] = verdict_table(found)
    assert dict(zip(columns, row, strict=True))["verdict"].startswith(verdict)
    assert dict(zip(columns, row, strict=True))["p (paired t-test)"] == ""  # one seed tests nothing


def test_a_run_that_is_not_finished_is_not_compared(tmp_path: Path) -> None:
    """It is behind because it is at its beginning."""
    found = study(tmp_path, {"FedAvg": [50.0, 51.0], "FedMR": [55.0, 57.0]}, {})
    log = tmp_path / "runs" / "FedMR_seed1" / "metrics.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0].replace("0.57", "0.1"))
    columns, [row] = verdict_table(read_study([tmp_path]))
    told = dict(zip(columns, row, strict=True))
    assert (told["points"], told["seeds"]) == ("+5.00", "1")
    [experiment] = [e for e in found.experiments if e.method == "FedMR"]
    assert experiment.finished == {0, 1}

    log = tmp_path / "runs" / "FedMR_seed0" / "metrics.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    columns, [row] = verdict_table(read_study([tmp_path]))
    assert row[-1] == "none yet: FedMR and a baseline have no finished runs with the same seed"


def test_the_best_baseline_is_found_over_the_seeds_that_all_have() -> None:
    """SCAFFOLD was run with the easy seed alone, with which FedAvg is better than it."""
    cell = [
        Scores("FedAvg", ("fedavg",), {0: 0.50, 1: 0.60, 2: 0.61}),
        Scores("SCAFFOLD", ("scaffold",), {2: 0.58}),
        Scores("FedMR", ("fedmr",), {0: 0.55, 1: 0.62, 2: 0.63}),
    ]
    found = margin(cell, {"FedMR": 60.0, "FedAvg": 50.0})
    assert found is not None
    assert (found.baseline, found.seeds) == ("FedAvg", (0, 1, 2))
    assert found.points == pytest.approx(3.0)
    # Without such a seed, each is compared with FedMR over those that it shares with it.
    cell[0] = Scores("FedAvg", ("fedavg",), {0: 0.50, 1: 0.60})
    found = margin(cell, {})
    assert found is not None
    assert (found.baseline, found.seeds) == ("FedAvg", (0, 1))
    assert margin([cell[0], Scores("FedMR", ("fedmr",), {2: 0.6})], {}) is None
    # A variant does not stand for FedMR while that has no finished run.
    assert margin([cell[0], Scores("FedMR", ("fedmr",), {}), Scores("FedMR-100", ("fedmr",), {0: 0.9})], {}) is None


def test_a_cell_without_a_baseline_has_no_verdict(tmp_path: Path) -> None:
    assert verdict_table(study(tmp_path, {"FedMR": [50.0], "FedMR w/o MR": [40.0]}, {}))[1] == []


def test_differences_that_are_all_alike_are_not_tested(tmp_path: Path) -> None:
    found = study(tmp_path, {"FedAvg": [50.0, 51.0], "FedMR": [52.0, 53.0]}, {})
    [cell] = found.cells.values()
    result = cell_margin(found, cell)
    assert result is not None
    assert result.p_value is None


def test_the_published_number_stands_beside_ours(tmp_path: Path) -> None:
    columns, rows = comparison_table(study(tmp_path, {"FedAvg": [50.0], "FedMR": [53.0]}, {"FedMR": 56.0}), None)
    told = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [(row["alpha"], row["method"], row["published, %"]) for row in told] == [
        ("alpha=0.5", "FedAvg", ""),
        ("alpha=0.5", "FedMR", "56.00 ± 0.50"),
    ]


def test_the_page_about_the_paper_is_made_from_finished_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "reproduction.py"
    docs = tmp_path / "docs"
    docs.mkdir()

    def reproduce(*sweeps: Path) -> str:
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, sweeps), "--docs", str(docs)])
        runpy.run_path(str(script), run_name="__main__")
        return (docs / "reproduction.md").read_text()

    published = {"FedAvg": 50.0, "FedMR": 56.0}
    (tmp_path / "a").mkdir()
    study(tmp_path / "a", {"FedAvg": [50.0, 51.0], "FedMR": [53.0, 56.0]}, published, rounds=4)
    (tmp_path / "b").mkdir()
    study(tmp_path / "b", {"FedAvg": [50.0, 51.0, 90.0]}, published, rounds=3)  # one round is missing
    page = reproduce(tmp_path / "a", tmp_path / "b")
    assert "4 runs" in page
    assert "| alpha=0.5 | FedAvg | +4.00 ± 1.41 | +6.00 over FedAvg |" in page
    assert "at least half of the margin" in page
    with (docs / "results" / "hand-runs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["method"], row["seed"]) for row in rows] == [(m, s) for m in ("FedAvg", "FedMR") for s in "01"]
    assert (docs / "results" / "hand-alpha0.5.png").exists()
    assert reproduce(tmp_path / "a") == reproduce() == page  # a run that is there already is replaced
