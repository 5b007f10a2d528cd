"""What came out of reproducing the paper: finished runs → docs/results → docs/reproduction.md.

    python benchmarks/reproduction.py SWEEP...     # add the finished runs of sweeps, then write the page
    python benchmarks/reproduction.py              # write the page from what is there

docs/results/NAME-runs.csv has a line a run, NAME-curves.csv every tenth round of it; NAME is the sweep's. A run that is
there already is replaced. No figure on the page is typed: it says what the files say. What is typed is what a sweep is
for, in the comment that its file begins with, and what was learnt from it, in docs/results/NAME.txt where there is one.
The figures of the sweeps in `IN_README` are also put into the README.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from generated import fill

from fedmr_merge.recipe.sweep_file import read_sweep, sweep_runs
from fedmr_merge.report.comparison import VERDICT_COLUMNS, comparison_csv, curves_csv, margin_row, markdown_table
from fedmr_merge.report.figures import LINE_STYLES, PALETTE, draw
from fedmr_merge.report.study import METHOD, Experiment, Spread, Study, read_study
from fedmr_merge.report.verdict import Scores, margin

ROOT = Path(__file__).parents[1]
DEMONSTRATION = "digits-methods"
IN_README = (DEMONSTRATION, "lenet-cifar10", "lenet-cifar10-long")  #: the sweeps whose figures the README shows


def main() -> None:
    """Add the sweeps that are named, and write the page."""
    parser = argparse.ArgumentParser(description="Add the finished runs of sweeps to docs/results; write the page.")
    parser.add_argument("sweeps", nargs="*", type=Path, help="folders of sweeps")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where results/ and reproduction.md are")
    options = parser.parse_args()
    results = options.docs / "results"
    results.mkdir(exist_ok=True)
    for folder in options.sweeps:
        add(folder, results)
    target = options.docs / "reproduction.md"
    target.write_text(page(results), encoding="utf-8")
    print(f"written: {target}", file=sys.stderr)
    readme = options.docs.parent / "README.md"
    if readme.exists():
        readme.write_text(filled(readme.read_text(encoding="utf-8"), results), encoding="utf-8")
        print(f"written: {readme}", file=sys.stderr)


def add(folder: Path, results: Path) -> None:
    """Add the finished runs of a sweep to the results."""
    study = finished(read_study([folder]))
    if not study.experiments:
        return
    axes = [axis for axis in study.axes if axis != METHOD]
    for kind, text in (("runs", comparison_csv(study)), ("curves", curves_csv(study))):
        path = results / f"{study.sweeps[0]}-{kind}.csv"
        new = list(csv.DictReader(io.StringIO(text)))
        added = {known_by(row, axes) for row in new}
        rows = [row for row in read(path) if known_by(row, axes) not in added] + new
        rows.sort(key=lambda row: (*known_by(row, axes), int(row.get("round", 0))))
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(new[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    published = [{"choices": p.choices, "mean": p.mean, "deviation": p.deviation} for p in study.published]
    about = {"axes": axes, "published": published}
    (results / f"{study.sweeps[0]}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def known_by(row: dict[str, str], axes: list[str]) -> tuple[str, ...]:
    """Return what a run is known by: its choices and its seed."""
    return tuple(row[name] for name in (*axes, METHOD, "seed"))


def finished(study: Study) -> Study:
    """Return the finished runs of a study."""
    kept = []
    for experiment in study.experiments:
        runs = {seed: experiment.runs[seed] for seed in experiment.finished}
        if runs:
            kept.append(Experiment(experiment.recipe, runs, experiment.choices))
    return Study(tuple(kept), study.published, study.axes, study.sweeps)


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


INTRODUCTION = """# Reproduction

What came out of running the experiments of the FedMR paper (Hu et al., "FedMR: Federated Learning via Model
Recombination", 2022, arXiv 2208.07677), a demonstration on a small data set, and a comparison of adapters, with this
package. `benchmarks/reproduction.py` makes this page from the files in `docs/results/`, which hold a line for every
finished run, with its seed and versions, and its learning curve.

Accuracies are those of the global model on the test data, in percent, as mean ± standard deviation over the seeds. A
method's accuracy is the mean of its last ten rounds, of those that were evaluated. The margin is FedMR's accuracy less
that of the best method in which every round ends with one model. Where the paper gives a number for the cell, the
verdict compares the margin with that of the paper's Table 1 over the methods that were run. The test is a paired t-test
over the seeds that both have.

The CIFAR-10 that was used is a copy of the images as JPEG files, which costs every method some accuracy: compare the
methods with each other, and with the paper by differences.
"""


def page(results: Path) -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for about in sorted(results.glob("*.json"), key=lambda path: path.stem):
        parts.append(section(results, about.stem, json.loads(about.read_text(encoding="utf-8"))))
    return "\n".join(parts)


@dataclass(frozen=True)
class Accuracy:
    """How well a method did in a cell."""

    cell: str
    method: str
    seeds: list[int]
    rounds: str
    last: Spread  #: over the seeds, as a share of 1
    best: Spread
    paper: tuple[float, float] | None  #: mean and deviation in percent, where the paper has the cell

    def row(self) -> list[str]:
        """Return the cells of a table's row."""
        seeds = ", ".join(map(str, self.seeds))
        return [self.cell, self.method, seeds, self.rounds, self.last.shown(100), self.best.shown(100), self.their(2)]

    def their(self, digits: int) -> str:
        """Return what the paper has."""
        return " ± ".join(f"{number:.{digits}f}" for number in self.paper or ())


@dataclass(frozen=True)
class Tables:
    """What is to be said of one sweep."""

    cells: list[tuple[str, ...]]
    verdicts: list[list[str]]
    methods: list[Accuracy]
    differences: list[list[str]]  #: from the best baseline, of sweeps with more than two methods


def tables(rows: list[dict[str, str]], about: dict[str, list]) -> Tables:
    """Return the verdict of each cell of a sweep that has one, and the accuracy of every method in every cell."""
    axes = about["axes"]
    cells: dict[tuple[str, ...], dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        cells.setdefault(tuple(row[axis] for axis in axes), {}).setdefault(row[METHOD], []).append(row)
    made = Tables(list(cells), [], [], [])
    for cell, methods in cells.items():
        choices = dict(zip(axes, cell, strict=True))
        published = {
            p["choices"][METHOD]: p
            for p in about["published"]
            if {axis: p["choices"].get(axis, choices[axis]) for axis in axes} == choices
        }
        scores = []
        for method, runs in methods.items():
            by_seed = {int(run["seed"]): float(run["last10"]) for run in runs}
            scores.append(Scores(method, tuple(runs[0]["stages"].split()), by_seed))
            best = Spread.of([float(run["best"]) for run in runs])
            rounds = "-".join(dict.fromkeys(sorted(run["rounds"] for run in runs)))
            their = published.get(method)
            paper = (their["mean"], their["deviation"]) if their else None
            last = Spread.of(list(by_seed.values()))
            made.methods.append(Accuracy(shown_cell(cell), method, list(by_seed), rounds, last, best, paper))
        theirs = {method: p["mean"] for method, p in published.items()}
        found = margin(scores, theirs)
        if found is not None:
            made.verdicts.append([shown_cell(cell), *margin_row(found)])
            made.differences.extend([shown_cell(cell), *row] for row in paired(scores, found.baseline, theirs))
    return made


def shown_cell(cell: tuple[str, ...]) -> str:
    """Return what a cell is called: by its choices on all axes but the method."""
    return ", ".join(cell) or "all"


def paired(scores: list[Scores], baseline: str, published: dict[str, float]) -> list[list[str]]:
    """Return how much each of several methods is above the best baseline, seed by seed and in the paper, in percentage
    points.
    """
    if len(scores) <= 2:  # the verdict says it
        return []
    best = next(one for one in scores if one.method == baseline)
    rows = []
    for one in scores:
        seeds = sorted(one.by_seed.keys() & best.by_seed.keys())
        if one is best or not seeds:
            continue
        found = [100 * (one.by_seed[seed] - best.by_seed[seed]) for seed in seeds]
        each = ", ".join(f"{difference:+.2f}" for difference in found)
        paper = (
            f"{published[one.method] - published[baseline]:+.2f}" if {one.method, baseline} <= published.keys() else ""
        )
        rows.append([one.method, baseline, ", ".join(map(str, seeds)), each, Spread.of(found).shown(), paper])
    return rows


def sweep_file(name: str) -> Path | None:
    """Return the file of a sweep that comes with the package; None where it has no such sweep."""
    return next(iter(sorted((ROOT / "recipes").rglob(f"{name}.yaml"))), None)


def description(name: str) -> str:
    """Return what a sweep's own file says of it, in the comment that it begins with; nothing where it has none."""
    path = sweep_file(name)
    if path is None:
        return ""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    found = [line.removeprefix("#").strip() for line in lines]
    commands = ("fedmr-merge ", "python ")
    return "\n".join(f"\n`{line}`" if line.startswith(commands) else line for line in found) + "\n\n"


def missing(name: str, rows: list[dict[str, str]]) -> str:
    """Return what a sweep's own file names and nobody has run so far, cell by cell; nothing where it has none."""
    path = sweep_file(name)
    if path is None:
        return ""
    sweep = read_sweep(path)
    axes = [axis for axis in sweep.axes if axis != METHOD]
    done, runs = {known_by(row, axes) for row in rows}, sweep_runs(sweep)
    left: dict[str, dict[str, list[int]]] = {}  # cell → method → seeds
    for run in runs:
        chosen, method = tuple(run.choices[axis] for axis in axes), run.choices[METHOD]
        if (*chosen, method, str(run.seed)) not in done:
            left.setdefault(shown_cell(chosen), {}).setdefault(method, []).append(run.seed)
    if not left:
        return f"All {len(runs)} runs that the file names are here.\n"
    told = []
    for cell, methods in left.items():
        alike: dict[str, list[str]] = {}  # seeds → methods
        for method, seeds in methods.items():
            alike.setdefault(seed_range(seeds), []).append(method)
        told += [[cell, seeds, ", ".join(found)] for seeds, found in alike.items()]
    count = sum(len(seeds) for methods in left.values() for seeds in methods.values())
    table = markdown_table(["cell", "not run yet", "methods"], told)
    return f"Of the {len(runs)} runs that the file names, {count} have not been done yet:\n\n{table}"


def section(results: Path, name: str, about: dict[str, list]) -> str:
    """Return the part of the page about one sweep, and draw its curves."""
    rows = read(results / f"{name}-runs.csv")
    made = tables(rows, about)
    for cell in made.cells:
        draw_cell(results, name, cell, about["axes"])
    versions = sorted({(row["fedmr_merge"], row["torch"], row["device"]) for row in rows})
    told = "; ".join(f"fedmr-merge {ours}, torch {torch}, {device}" for ours, torch, device in versions)
    apart = ["cell", "method", "less", "seeds", "points, by seed", "mean ± deviation", "paper"]
    columns = ["cell", "method", "seeds", "rounds", "last 10 rounds", "best round", "paper"]
    pictures = "\n".join(f"![{shown_cell(cell)}](results/{picture(name, cell)})" for cell in made.cells)
    notes = results / f"{name}.txt"
    runs = f"{len(rows)} run{'s'[: len(rows) != 1]}"
    return (
        f"## {name}\n\n{description(name)}{runs} of the sweep {name} (in `recipes/`); {told}.\n\n"
        + (markdown_table(VERDICT_COLUMNS, made.verdicts) + "\n" if made.verdicts else "")
        + markdown_table(columns, [found.row() for found in made.methods])
        + ("\n" + markdown_table(apart, made.differences) if made.differences else "")
        + (f"\n{notes.read_text(encoding='utf-8')}" if notes.exists() else "")
        + f"\n{pictures}\n"
        + f"\n{missing(name, rows)}"
    )


def filled(readme: str, results: Path) -> str:
    """Return the README with the figures of its sweeps."""
    for name in IN_README:
        readme = fill(readme, name, accuracies(results, name))
    return readme


def accuracies(results: Path, name: str) -> str:
    """Return a table of the README: rounded, as a processor's own arithmetic decides more digits.

    A row a method, a column a cell, with the seeds of every mean, and a column with what the paper has for the cell.
    """
    about = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    made = tables(read(results / f"{name}-runs.csv"), about)
    columns, rows = ["method"], {found.method: [found.method] for found in made.methods}
    for cell in map(shown_cell, made.cells):
        by_method = {found.method: found for found in made.methods if found.cell == cell}
        published = any(found.paper for found in by_method.values())
        columns += [f"{cell}, %", "in the paper"] if published else [f"{cell}, %"]
        for method, row in rows.items():
            found = by_method.get(method)
            row.append(f"{found.last.shown(100, '.1f')} ({seed_range(found.seeds)})" if found else "")
            row.extend([found.their(1) if found else ""] if published else [])
    return f"\n{markdown_table(columns, list(rows.values()))}\n"


def seed_range(seeds: list[int]) -> str:
    """Return the words for some seeds: `seed 0`, or `seeds 0 to 2` where none between is left out."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    whole = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1))
    return f"seeds {seeds[0]} to {seeds[-1]}" if whole else f"seeds {', '.join(map(str, seeds))}"


def picture(name: str, cell: tuple[str, ...]) -> str:
    """Return the name of the file with the curves of a cell."""
    return "-".join([name, *cell]).replace("=", "") + ".png"


def draw_cell(results: Path, name: str, cell: tuple[str, ...], axes: list[str]) -> None:
    """Draw the learning curves of a cell: mean over the seeds, with the deviation as a band."""
    curves: dict[str, dict[int, list[float]]] = {}
    for row in read(results / f"{name}-curves.csv"):
        if tuple(row[axis] for axis in axes) == cell:
            curves.setdefault(row[METHOD], {}).setdefault(int(row["round"]), []).append(
                100 * float(row["test_accuracy"])
            )
    with draw(results / picture(name, cell), 8.0, 4.5) as plot:
        for number, (method, found) in enumerate(curves.items()):
            rounds = sorted(found)
            means = [statistics.fmean(found[round]) for round in rounds]
            bands = [Spread.of(found[round]).deviation or 0.0 for round in rounds]
            colour, style = PALETTE[number % len(PALETTE)], LINE_STYLES[number // len(PALETTE) % len(LINE_STYLES)]
            seeds = max(map(len, found.values()))
            plot.plot(rounds, means, color=colour, linestyle=style, label=f"{method} ({seeds} seed{'s'[: seeds > 1]})")
            lower = [mean - band for mean, band in zip(means, bands, strict=True)]
            upper = [mean + band for mean, band in zip(means, bands, strict=True)]
            plot.fill_between(rounds, lower, upper, color=colour, alpha=0.15, linewidth=0)
        plot.set(xlabel="round", ylabel="test accuracy of the global model (%)", title=", ".join(cell) or name)
        plot.grid(axis="y", linewidth=0.4, alpha=0.6)
        plot.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, fontsize="small")


if __name__ == "__main__":
    main()
