"""A recombination plan as a table, and as a file."""

from __future__ import annotations

from pathlib import Path

from fedmr_merge.checkpoint.writer import dumps, free_bytes, staged_output
from fedmr_merge.cli import console
from fedmr_merge.cli.groups import perhaps_tied, show_ties
from fedmr_merge.errors import PlanError
from fedmr_merge.hub.inputs import refuse_inside
from fedmr_merge.recombination.prepare import PreparedRecombination


def show_plan(work: PreparedRecombination) -> None:
    """Print which slot each layer group comes from, and the bytes and the memory that the recombination takes."""
    rows = [
        [
            group.name + (" (pinned)" if group.pinned else ""),
            str(len(group.tensors)),
            " ".join(map(str, work.plan.permutations[group.name])),
        ]
        for group in work.grouping.groups
    ]
    console.say(f"rule {work.grouping.rule}: {work.grouping.found}")
    console.table(("layer group", "tensors", "source slot of slot 0, 1, …"), rows, right=("tensors",))
    show_ties(work.grouping)
    forecast = work.output.layout.forecast(work)
    if (shards := forecast.shards) is not None:
        more = f", {console.size(forecast.shard_bytes)}, less what it holds already" if shards.copied_in else ""
        linked = f"{shards.linked} shards to link, {shards.copied_in} of them to copy in"
        console.say(f"store {shards.store}: {linked}{more}")
    console.say(
        f"to write {console.size(forecast.nbytes)} to {forecast.place}, free {console.size(free_bytes(work.out))}; "
        f"peak memory about {console.size(work.peak_memory_bytes)}"
    )


def save_plan_file(work: PreparedRecombination, path: Path) -> None:
    """Write the plan as JSON, one line for each layer group, so that people can read and change it.

    Raises PlanError when it is not known yet which tensors are tied, as such a plan would not fit the models, and
    OutputError when the file exists or lies in an input.
    """
    if work.grouping.perhaps_tied:
        raise PlanError(
            f"the plan is not final: {perhaps_tied(work.grouping)}",
            hint="recombine once without --dry-run: its plan stands in OUT/lineage.json, for --plan",
        )
    refuse_inside(path, work.parents, "--save-plan")
    content = work.plan.to_json()
    groups = ",\n".join(f"  {dumps(group)}: {dumps(sources)}" for group, sources in content["permutations"].items())
    with staged_output(path) as staging:
        staging.write_text(
            f'{{"format_version": {content["format_version"]}, "slots": {content["slots"]}, "permutations": '
            f"{{\n{groups}\n}}}}\n",
            encoding="utf-8",
        )
