"""Commands that look at checkpoints and write nothing: inspect, plan."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from fedmr_merge.cli import console
from fedmr_merge.cli.arguments import Checkpoints, IgnoreConfig, NoTies, Rule, expand, open_one, warn_left_out
from fedmr_merge.cli.help import App


def register(app: App) -> None:
    """Add the commands of this module."""
    for command in (inspect, plan):
        app.command(rich_help_panel="Look at checkpoints")(command)


def inspect(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A file, a model folder or a Hub id.")],
    rule: Rule = "layer",
) -> None:
    """Show the layer groups of a checkpoint.

    With their tensors, parameters, bytes and dtypes, and how the groups were found.

    Example: fedmr-merge inspect model.safetensors --rule auto
    """
    from fedmr_merge.cli.groups import show_groups
    from fedmr_merge.recombination.inspect import inspect as look

    found = look(open_one(checkpoint), rule)
    show_groups(found.checkpoint, found.grouping)


def plan(
    checkpoints: Checkpoints, rule: Rule = "layer", no_ties: NoTies = False, ignore_config: IgnoreConfig = None
) -> None:
    """Show whether models can be recombined, and what does not match.

    This is decided from headers and configurations alone: the weights of models on the Hub are not fetched.

    Example: fedmr-merge plan a.safetensors b.safetensors org/model@main
    """
    from fedmr_merge.checkpoint.matching import match_checkpoints
    from fedmr_merge.cli.groups import show_groups
    from fedmr_merge.hub.inputs import open_inputs, refuse_twice
    from fedmr_merge.layers.rules import compared_files
    from fedmr_merge.recombination.grouping import group_checkpoints

    named = expand(checkpoints)
    opened = open_inputs(named, headers_only=True, configs=compared_files(rule))
    refuse_twice(opened)
    match_checkpoints(opened, ignore_config=ignore_config or ())
    warn_left_out(opened)
    grouping = group_checkpoints(opened, rule, ignore_config or (), ties=not no_ties)
    rows = [
        [str(slot), found.location, console.size(found.nbytes), str(len(found.files)), found.licence or ""]
        for slot, found in enumerate(opened)
    ]
    console.table(("slot", "model", "size", "files", "licence"), rows, right=("slot", "size", "files"))
    show_groups(opened[0], grouping)
    remote = sum(found.nbytes for found in opened if found.is_remote)
    if remote:
        console.say(f"to fetch from the Hub: {console.size(remote)}, less what is in the cache")
    options = [] if rule == "layer" else ["--rule", rule]
    options += ["--no-ties"] if no_ties else []
    options += [part for key in ignore_config or () for part in ("--ignore-config", key)]
    console.say(f"next: fedmr-merge recombine {shlex.join([*named, *options])}")
