"""Commands that train: run, partition."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fedmr_merge.cli import console

if TYPE_CHECKING:
    from fedmr_merge.federated.federation import Federation
    from fedmr_merge.recipe.run import Run
    from fedmr_merge.recipe.schema import Recipe

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, a YAML file.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Change an option, e.g. training.lr=0.05; repeatable.")
]
Seed = Annotated[int | None, typer.Option(help="Seed, instead of the recipe's.")]
_MAX_CLASS_COLUMNS = 20  # a wider table cannot be read; the plot shows all classes
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda, instead of the recipe's.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(run)
    app.command()(partition)


def run(
    recipe: RecipeFile,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME if not given.")] = None,
    seed: Seed = None,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; write and fetch nothing.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace a run that is in this folder.")] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Continue the folder's run with more rounds or other stages to come.")
    ] = False,
) -> None:
    """Follow a recipe, or go on with its run.

    Trains, recombines, evaluates and publishes. A run that was interrupted in any way goes on where it was.
    """
    if dry_run:
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched; libraries read it when they are imported
    from fedmr_merge.recipe.run import Run
    from fedmr_merge.recipe.schema import read_recipe

    checked = read_recipe(recipe, _settings(settings, seed, device))
    folder = out or Path("runs") / checked.name
    if dry_run:
        _show(checked, folder)
        return
    again = _command(recipe, settings, out, seed, device)
    with _saving_when_terminated(), Run(checked, folder, fresh=fresh, extend=extend) as opened:
        _follow(opened, folder, again)


@contextlib.contextmanager
def _saving_when_terminated() -> Iterator[None]:
    """Within the block SIGTERM, a batch system's way to say stop, saves what is done as Ctrl-C does."""

    def stop(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _settings(settings: list[str] | None, seed: int | None, device: str | None) -> list[str]:
    more = [f"seed={seed}"] if seed is not None else []
    return [*(settings or ()), *more, *([f"training.device={device}"] if device else [])]


def _command(recipe: Path, settings: list[str] | None, out: Path | None, seed: int | None, device: str | None) -> str:
    """The command that goes on with this run."""
    import shlex

    words = ["fedmr-merge", "run", str(recipe)]
    for setting in settings or ():
        words += ["--set", setting]
    for option, value in (("--out", out), ("--seed", seed), ("--device", device)):
        words += [option, str(value)] if value is not None else []
    return shlex.join(words)


def _follow(run: Run, folder: Path, again: str) -> None:
    from fedmr_merge.federated.federation import describe_last_batches
    from fedmr_merge.recipe.prepare import parameters
    from fedmr_merge.recipe.run import RoundDone

    recipe, resumed = run.recipe, run.resumed_from
    federation = run.federation
    console.say(
        f"{recipe.name}: {recipe.rounds} rounds of {federation.slots} of {len(federation.partition)} clients on "
        f"{federation.device.type}, {parameters(federation):,} parameters, in {folder}"
    )
    _warn_of_data(federation)
    if line := describe_last_batches(federation):
        console.say(line)
    for note in run.notes:
        console.complain("warning", note)
    if resumed:
        console.say(f"going on after round {resumed.round}")
        for change in run.changed_environment():
            console.complain("warning", f"not as when the run began: {change}; the bytes may differ")
    last = None
    try:
        with console.rounds_progress(recipe.name, recipe.rounds, resumed.round if resumed else 0) as progress:
            for event in run.execute():
                if isinstance(event, RoundDone):
                    last = event.result
                    metrics = last.metrics
                    for client, fault in last.diverged.items():
                        console.complain("warning", f"round {last.round}: client {client} diverged: {fault}")
                    loss = metrics.get("train_loss", metrics["test_loss"])
                    progress(
                        last.round,
                        f"{last.method}: accuracy {metrics['test_accuracy']:.4f}, loss {loss:.4f}",
                    )
                    if event.reached:
                        console.say(f"{last.method}: over after round {last.round}, {event.reached}")
                else:
                    console.say(f"{event.name}: {event.message}")
    except (KeyboardInterrupt, SystemExit):
        console.complain("hint", f"to go on: {again}")
        raise
    _closing_words(folder, again)


def _warn_of_data(federation: Federation) -> None:
    from fedmr_merge.federated.data.partition import missing_classes

    for note in federation.data.notes:
        console.complain("note", note)
    for name in missing_classes(federation.partition, federation.data):
        console.complain("warning", f"no client has an example of class {name}: no model will learn it")


def _closing_words(folder: Path, again: str) -> None:
    from fedmr_merge.runs.names import CHECKPOINTS, GLOBAL, METRICS, find_checkpoints

    published = folder / GLOBAL
    if published.is_dir():
        console.say(f"  model      {published / 'model.safetensors'}")
        console.say(f"  card       {published / 'README.md'}")
        console.say(f"  curve      {published / 'curves.png'}")
    console.say(f"  metrics    {folder / METRICS}")
    newest = [folder / CHECKPOINTS / place.folder for place in find_checkpoints(folder / CHECKPOINTS)[-1:]]
    console.say("next:")
    if published.is_dir():
        console.say(f"  publish    fedmr-merge push {published} ORG/NAME")
    for checkpoint in newest:
        if len(list(checkpoint.glob("slot-*"))) > 1:
            console.say(f"  recombine  fedmr-merge recombine {checkpoint}/slot-*")
    console.say(f"  resume     {again}   (goes on after any interruption)")


def _show(recipe: Recipe, folder: Path) -> None:
    from fedmr_merge.errors import AbsentDataError, HubError
    from fedmr_merge.recipe.prepare import check_stages, prepare

    federation, absent = None, ""
    try:
        federation = prepare(recipe)
        check_stages(recipe, federation)
    except (AbsentDataError, HubError) as error:
        absent = str(error)
    console.say(recipe.to_yaml().rstrip())
    if federation is not None:
        _show_sizes(recipe, federation)
    if absent:
        console.say(f"not all could be checked, as a dry run fetches nothing: {absent}")
    console.say(f"dry run: nothing was written to {folder}")


def _show_sizes(recipe: Recipe, federation: Federation) -> None:
    from fedmr_merge.federated.federation import describe_last_batches
    from fedmr_merge.recipe.prepare import parameters, stage_traffic

    sizes = federation.partition.sizes
    console.say(f"{len(sizes)} clients with {min(sizes)} to {max(sizes)} examples")
    if line := describe_last_batches(federation):
        console.say(line)
    console.say(f"{parameters(federation):,} parameters in {len(set(federation.layers.values()))} layers")
    for name, traffic in stage_traffic(recipe, federation).items():
        down, up = console.size(traffic.down), console.size(traffic.up)
        console.say(f"{name}: {down} sent to the clients in a round, {up} sent back")


def partition(
    recipe: RecipeFile,
    settings: Settings = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The plot; NAME-partition.png if not given.")] = None,
) -> None:
    """Show which client holds what.

    How many examples of which class every client of a recipe gets, as a table and a plot.
    """
    from fedmr_merge.checkpoint.writer import refuse_existing, staged_output
    from fedmr_merge.recipe.prepare import partition_json, prepare
    from fedmr_merge.recipe.schema import read_recipe
    from fedmr_merge.report.partition import draw_partition

    checked = read_recipe(recipe, _settings(settings, seed, "cpu"))
    target = out or Path(f"{checked.name}-partition.png")
    refuse_existing(target)
    federation = prepare(checked)
    dealt = partition_json(federation)
    names, counts = dealt["class_names"], dealt["class_counts"]
    with staged_output(target) as staging:
        draw_partition(counts, names, staging, title=f"{checked.name}: partition")
    by_class = len(names) <= _MAX_CLASS_COLUMNS
    columns = ("client", "examples", "classes", *(names if by_class else ()))
    rows = [
        [str(client), str(sum(row)), str(sum(count > 0 for count in row)), *map(str, row if by_class else ())]
        for client, row in enumerate(counts)
    ]
    console.table(columns, rows, right=columns)
    sizes = [sum(row) for row in counts]
    console.say(f"{len(sizes)} clients with {min(sizes)} to {max(sizes)} of {sum(sizes):,} training examples")
    _warn_of_data(federation)
    console.say(f"plot: {target}")
    console.say(f"next: {_command(recipe, settings, None, seed, None)}")
