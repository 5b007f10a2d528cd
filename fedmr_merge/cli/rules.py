"""`fedmr-merge rules`: see and check layer rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmr_merge.cli import console
from fedmr_merge.cli.arguments import Checkpoints, Rule, expand, open_one
from fedmr_merge.cli.groups import show_groups

app = typer.Typer(help="Layer rules: list, explain, check.", no_args_is_help=True)


@app.command("list")
def list_rules() -> None:
    """List the built-in layer rules."""
    from fedmr_merge.layers.rules import describe_rules

    console.table(("rule", "layer groups"), [list(row) for row in describe_rules()])


@app.command()
def explain(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint.")],
    rule: Rule = "auto",
) -> None:
    """Show which layer group every tensor of a checkpoint belongs to."""
    from fedmr_merge.recombination.prepare import group_checkpoints

    opened = open_one(checkpoint)
    show_groups(opened, group_checkpoints([opened], rule), tensors=True)


@app.command()
def check(
    rule_file: Annotated[Path, typer.Argument(help="A rule file.")],
    checkpoints: Checkpoints,
) -> None:
    """Check a rule file against checkpoints: every tensor matched, by one rule only (but for a fallback at the
    end), no rule idle; what `ties` and `require_equal` name is there.
    """
    from fedmr_merge.errors import RuleError
    from fedmr_merge.hub.inputs import open_inputs
    from fedmr_merge.layers.rule_check import check_require_equal, check_rule_file
    from fedmr_merge.layers.rule_language import read_rule_file

    faults: dict[str, list[str]] = {}  # with the checkpoints that have them
    checked = open_inputs(expand(checkpoints), headers_only=True, configs=read_rule_file(rule_file).require_equal)
    for opened in checked:
        for fault in check_rule_file(rule_file, opened.shapes):
            faults.setdefault(fault, []).append(opened.source)
    told = [
        fault if len(sources) == len(checked) else f"{fault} (in {console.listed(sources, ', ', 3)})"
        for fault, sources in faults.items()
    ]
    told += check_require_equal(rule_file, checked)
    if told:
        raise RuleError(f"{rule_file}: {console.listed(told)}", hint="docs/recombine.md explains the rule language")
    console.say(f"{rule_file}: every tensor of {console.plural(len(checked), 'checkpoint')} belongs to one layer group")
