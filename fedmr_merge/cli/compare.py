"""The commands that compare runs: compare, report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmr_merge.cli import console
from fedmr_merge.cli.help import App

if TYPE_CHECKING:
    from fedmr_merge.report.study import Study

Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUNS", help="Run folders, what their `publish` stages wrote, or sweep folders."),
]


def register(app: App) -> None:
    """Add the commands of this module."""
    for command in (compare, report):
        app.command(rich_help_panel="Train")(command)


def compare(
    runs: Runs,
    target: Annotated[
        float | None,
        typer.Option(
            min=0, help="Also show the rounds to this test accuracy, e.g. 0.9, or to a value of another metric."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="A folder for the table, as Markdown and CSV, and the curves."),
    ] = None,
) -> None:
    """Compare runs: accuracy as mean ± standard deviation over the seeds.

    Runs that differ in their seed alone are one row.

    Example: fedmr-merge compare runs/* --target 0.9 -o comparison
    """
    from fedmr_merge.report.comparison import comparison_table, verdict_table
    from fedmr_merge.report.study import read_study

    study = read_study(runs)
    _check_target(study, target)
    columns, rows = comparison_table(study, target)
    verdicts = verdict_table(study)
    if out is not None:
        _write(out, study, target)
    console.table(columns, rows, right=columns[columns.index("seeds") :])
    if verdicts[1]:
        console.say()
        console.table(*verdicts, right=verdicts[0][2:6])
    if any(run.deciding_part == "test" for experiment in study.experiments for run in experiment.runs.values()):
        console.say("the best round was picked by the test data: it is not an estimate for new data")
    if out is not None:
        console.say(f"written: {out}")


def report(
    runs: Runs,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of the report; must not exist.")] = Path(
        "report"
    ),
    target: Annotated[
        float | None,
        typer.Option(min=0, help="Also show rounds and bytes to this test accuracy, or to a value of another metric."),
    ] = None,
) -> None:
    """Write one HTML page about runs, or a sweep.

    Curves, accuracies, FedMR's margin, communication, partition, confusion, similarity and lineage, in one file that
    needs no network; the numbers as CSV and Markdown beside it.

    Example: fedmr-merge report sweeps/table1 -o report
    """
    from fedmr_merge.checkpoint.writer import refuse_existing
    from fedmr_merge.report.page import write_page
    from fedmr_merge.report.study import read_study

    refuse_existing(out)
    study = read_study(runs)
    _check_target(study, target)
    _write(out, study, target, page=lambda folder: write_page(study, folder / "index.html", target=target))
    console.say(f"  page       {out / 'index.html'}")
    console.say(f"  numbers    {out / 'runs.csv'}, {out / 'curves.csv'}, {out / 'table.md'}")
    console.say("next:")
    console.say(f"  open       {(out / 'index.html').resolve().as_uri()}")


def _check_target(study: Study, target: float | None) -> None:
    if target is not None and target > 1 and any(metric.is_share for metric in study.metrics):
        raise typer.BadParameter(f"{target:g} is not an accuracy, which is from 0 to 1", param_hint="--target")


def _write(out: Path, study: Study, target: float | None, page: Callable[[Path], None] = lambda _: None) -> None:
    from fedmr_merge.checkpoint.writer import staged_output
    from fedmr_merge.report.comparison import (
        comparison_csv,
        comparison_table,
        curves_csv,
        draw_comparison,
        markdown_table,
        verdict_table,
    )

    with staged_output(out) as staging:
        staging.mkdir()
        verdicts = verdict_table(study)
        text = markdown_table(*comparison_table(study, target))
        text += "\n" + markdown_table(*verdicts) if verdicts[1] else ""
        (staging / "table.md").write_text(text, encoding="utf-8")
        (staging / "runs.csv").write_text(comparison_csv(study), encoding="utf-8")
        (staging / "curves.csv").write_text(curves_csv(study), encoding="utf-8")
        draw_comparison(study, staging / "curves.png")
        page(staging)
