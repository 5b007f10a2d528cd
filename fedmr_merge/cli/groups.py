"""Layer groups as tables."""

from __future__ import annotations

from collections import Counter

from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.cli import console
from fedmr_merge.layers.rules import Grouping


def show_groups(checkpoint: Checkpoint, grouping: Grouping, *, tensors: bool = False) -> None:
    """Print a checkpoint's layer groups with their tensors, parameters, bytes and dtypes; with `tensors` a line
    for each tensor, too.
    """
    console.say(f"{checkpoint.location}: rule {grouping.rule}, {grouping.found}")
    rows = []
    for group in grouping.groups:
        entries = [checkpoint.tensors[name] for name in group.tensors]
        rows.append(
            [
                group.name + (" (pinned)" if group.pinned else ""),
                str(len(entries)),
                f"{sum(entry.parameters for entry in entries):,}",
                f"{sum(entry.nbytes for entry in entries):,}",
                ", ".join(sorted(Counter(entry.dtype for entry in entries))),
            ]
        )
        if tensors:
            rows += [
                [f"  {name}", "", f"{entry.parameters:,}", f"{entry.nbytes:,}", entry.signature]
                for name, entry in zip(group.tensors, entries, strict=True)
            ]
    console.table(
        ("layer group", "tensors", "parameters", "bytes", "dtypes"), rows, right=("tensors", "parameters", "bytes")
    )
    console.say(
        f"{console.plural(len(grouping.groups), 'layer group')}, {console.plural(len(checkpoint.tensors), 'tensor')}, "
        f"{checkpoint.parameters:,} parameters, {console.size(checkpoint.nbytes)} "
        f"in {console.plural(len(checkpoint.files), 'file')}"
    )
    show_ties(grouping)
    show_warnings(grouping)


def show_warnings(grouping: Grouping) -> None:
    """Print what the user should know of a grouping."""
    for warning in grouping.warnings:
        console.complain("warning", warning)


def show_ties(grouping: Grouping) -> None:
    """Print which tensors move as one because they are tied, and of which this is not known yet."""
    if grouping.tied:
        console.say(f"tied, moved as one: {console.listed([' = '.join(names) for names in grouping.tied])}")
    if grouping.perhaps_tied:
        console.say(f"not final: {perhaps_tied(grouping)}")


def perhaps_tied(grouping: Grouping) -> str:
    """Return a sentence on which tensors will move as one if they are tied."""
    ties = console.listed([" and ".join(names) for names in grouping.perhaps_tied])
    return f"{ties} will move as one if their bytes are equal, which is known when they are fetched"
