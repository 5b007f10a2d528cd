"""`fedmr-merge rules`: see and check layer rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmr_merge.cli import console
from fedmr_merge.cli.arguments import Checkpoints, Rule, expand, open_one
from fedmr_merge.cli.help import App

app = App("List, explain and check layer rules.")


@app.command("list")
def list_rules() -> None:
    """List the built-in layer rules.

    Example: fedmr-merge rules list
    """
    from fedmr_merge.layers.rules import describe_rules

    console.table(("rule", "layer groups"), [list(row) for row in describe_rules()])


@app.command()
def explain(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A file, a model folder or a Hub id.")],
    rule: Rule = "auto",
) -> None:
    """Show which layer group every tensor of a checkpoint belongs to.

    Example: fedmr-merge rules explain model.safetensors --rule block
    """
    from fedmr_merge.cli.groups import show_groups
    from fedmr_merge.recombination.inspect import inspect

    found = inspect(open_one(checkpoint), rule)
    show_groups(found.checkpoint, found.grouping, tensors=True)


@app.command()
def check(
    rule_file: Annotated[Path, typer.Argument(metavar="RULE_FILE", help="A rule file, a .yaml file.")],
    checkpoints: Checkpoints,
) -> None:
    """Check a rule file against checkpoints.

    Every tensor must match exactly one rule (besides a fallback at the end), every rule must match something, and what
    `ties` and `require_equal` name must be there.

    Example: fedmr-merge rules check rules.yaml a.safetensors b.safetensors
    """
    from fedmr_merge.errors import RuleError
    from fedmr_merge.hub.inputs import open_inputs
    from fedmr_merge.layers.rule_check import check_require_equal, check_rule_file
    from fedmr_merge.layers.rule_language import read_rule_file

    faults: dict[str, list[str]] = {}  # fault → the checkpoints that have it
    checked = open_inputs(expand(checkpoints), headers_only=True, configs=read_rule_file(rule_file).require_equal)
    for opened in checked:
        for fault in check_rule_file(rule_file, opened.shapes):
            faults.setdefault(fault, []).append(opened.location)
    lines = [
        fault if len(sources) == len(checked) else f"{fault} (in {console.listed(sources, ', ', 3)})"
        for fault, sources in faults.items()
    ]
    lines += check_require_equal(rule_file, checked)
    if lines:
        raise RuleError(
            f"{rule_file}: {console.listed(lines)}", hint="`fedmr-merge docs recombine` explains the rule language"
        )
    console.say(f"{rule_file}: every tensor of {console.plural(len(checked), 'checkpoint')} belongs to one layer group")
