"""Commands that train: run, partition."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedmr_merge.cli import console, progress
from fedmr_merge.cli.flower import Where, run_on
from fedmr_merge.cli.help import App
from fedmr_merge.cli.run_view import follow, show_recipe, warn_of_data
from fedmr_merge.cli.stopping import saving_when_terminated

_MAX_CLASS_COLUMNS = 20  # a wider table cannot be read; the plot shows all classes
_CHANGES = "Changes of the recipe"
RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe (a YAML file), the name of one that comes with fedmr-merge (`fedmr-merge recipes` lists them), "
        "or a run folder.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change an option, e.g. training.lr=0.05; repeatable.",
        rich_help_panel=_CHANGES,
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed, instead of the recipe's.", rich_help_panel=_CHANGES)]
Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None,
    typer.Option(help="Device, instead of the recipe's.", rich_help_panel=_CHANGES),
]


def register(app: App) -> None:
    """Add the commands of this module."""
    for command in (run, partition):
        app.command(rich_help_panel="Train")(command)


def run(
    recipe: RecipeName,
    settings: Settings = None,
    seed: Seed = None,
    device: Device = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="The run folder; by default runs/NAME.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; write and fetch nothing.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace a run that is in this folder.")] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Continue the folder's run with more rounds or other stages to come.")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Where the clients train: flower rehearses with a node for each client on this machine, flower:NAME "
            "has the nodes of a SuperLink.",
        ),
    ] = None,
) -> None:
    """Follow a recipe, or resume its run.

    Trains, recombines, evaluates and publishes. A run that was interrupted in any way is resumed where it stopped.

    Example: fedmr-merge run digits --set training.lr=0.02 --seed 1 -o runs/digits-seed1
    """
    where = None if on is None else Where.of(on)
    if dry_run:
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched; libraries read it when they are imported
    with progress.waiting("reading the recipe, loading torch"):
        from fedmr_merge.recipe.own import Own
        from fedmr_merge.recipe.ready_made import locate_recipe

        located = locate_recipe(recipe)
        from fedmr_merge.recipe.run import Run
        from fedmr_merge.recipe.schema import read_recipe

        checked = read_recipe(located.path, _settings(settings, seed, device), Own(located.code_folders))
    folder = out or located.run_folder or Path("runs") / checked.name
    if dry_run:
        show_recipe(checked, folder)
        return
    again = _command(recipe, settings, out, seed, device, on)
    if where is not None:
        with saving_when_terminated():
            options = {"out": out, "fresh": fresh, "extend": extend}
            run_on(where, checked, folder, again, code=located.code_folders, options=options)
        return
    with saving_when_terminated(), Run(checked, folder, fresh=fresh, extend=extend) as opened:
        follow(opened, folder, again)


def _settings(settings: list[str] | None, seed: int | None, device: str | None) -> list[str]:
    more = [f"seed={seed}"] if seed is not None else []
    return [*(settings or ()), *more, *([f"training.device={device}"] if device else [])]


def _command(
    recipe: str,
    settings: list[str] | None,
    out: Path | None,
    seed: int | None,
    device: str | None,
    on: str | None = None,
) -> str:
    """Return the command that resumes this run."""
    words = ["fedmr-merge", "run", recipe]
    for setting in settings or ():
        words += ["--set", setting]
    for option, value in (("--out", out), ("--seed", seed), ("--device", device), ("--on", on)):
        words += [option, str(value)] if value is not None else []
    return shlex.join(words)


def partition(
    recipe: RecipeName,
    settings: Settings = None,
    seed: Seed = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="The plot; by default NAME-partition.png.")
    ] = None,
) -> None:
    """Show which client holds what.

    A table and a plot show how many examples of which class every client of a recipe gets.

    Example: fedmr-merge partition digits --set data.partition.alpha=0.1
    """
    if out is not None and out.suffix.lower() not in ("", ".png"):
        raise typer.BadParameter(
            f"{out}: the plot is a PNG image, so name a file that ends in .png", param_hint="--out"
        )
    with progress.waiting("reading the recipe, loading torch"):
        from fedmr_merge.checkpoint.writer import refuse_existing
        from fedmr_merge.federated.federation import hold_out
        from fedmr_merge.recipe.own import Own
        from fedmr_merge.recipe.prepare import load_and_split, partition_json
        from fedmr_merge.recipe.ready_made import locate_recipe
        from fedmr_merge.recipe.schema import read_recipe

        located = locate_recipe(recipe)
        checked = read_recipe(located.path, _settings(settings, seed, None), Own(located.code_folders))
    if out is not None:
        refuse_existing(out)
    data, dealt = load_and_split(checked)
    found = partition_json(data, dealt)
    names, counts = found["class_names"], found["class_counts"]
    _show_partition(names, counts)
    warn_of_data(data, *hold_out(dealt, checked.training, checked.seed))
    _plot_partition(names, counts, checked.name, out)
    console.say(f"next: {_command(recipe, settings, None, seed, None)}")


def _show_partition(names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    by_class = len(names) <= _MAX_CLASS_COLUMNS
    columns = ("client", "examples", "classes", *(names if by_class else ()))
    rows = [
        [str(client), str(sum(row)), str(sum(count > 0 for count in row)), *map(str, row if by_class else ())]
        for client, row in enumerate(counts)
    ]
    console.table(columns, rows, right=columns)
    sizes = [sum(row) for row in counts]
    console.say(f"{len(sizes)} clients with {min(sizes)} to {max(sizes)} of {sum(sizes):,} training examples")


def _plot_partition(names: Sequence[str], counts: Sequence[Sequence[int]], recipe: str, out: Path | None) -> None:
    """Draw the plot to `out`, or under the recipe's name where no file has it: the table is shown in any case."""
    from fedmr_merge.checkpoint.writer import staged_output
    from fedmr_merge.report.partition import draw_partition

    target = out or Path(f"{recipe}-partition.png")
    if out is None and os.path.lexists(target):
        console.complain("note", f"{target} exists already and was left as it is; -o FILE draws the plot elsewhere")
        return
    with staged_output(target) as staging:
        draw_partition(counts, names, staging, title=f"{recipe}: partition")
    console.say(f"plot: {target}")
