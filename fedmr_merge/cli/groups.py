"""Layer groups as tables."""

from __future__ import annotations

from collections import Counter

from fedmr_merge.checkpoint.source import Checkpoint
from fedmr_merge.cli import console
from fedmr_merge.recombination.rules import Grouping


def show_groups(checkpoint: Checkpoint, grouping: Grouping, *, tensors: bool = False) -> None:
    """Print a checkpoint's layer groups with their tensors, parameters, bytes and dtypes; with `tensors` a line
    for each tensor, too.
    """
    console.say(f"{checkpoint.source}: rule {grouping.rule}, {grouping.found}")
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
