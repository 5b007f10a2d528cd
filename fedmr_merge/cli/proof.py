"""Commands that prove and undo a recombination: verify, undo, lineage, and the store's garbage collection."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fedmr_merge.cli import console
from fedmr_merge.cli.arguments import expand
from fedmr_merge.cli.help import App
from fedmr_merge.cli.progress import bytes_progress

Output = Annotated[Path, typer.Argument(metavar="OUT", help="A folder that `fedmr-merge recombine` wrote.")]

store_app = App("Look after the store of --layout store.")


def register(app: App) -> None:
    """Add the commands of this module."""
    for command in (verify, undo, lineage):
        app.command(rich_help_panel="Prove and undo")(command)


def verify(
    out: Output,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="The inputs, in the order of their slots; repeatable. By default where the lineage says they are.",
        ),
    ] = None,
) -> None:
    """Prove a recombination from its bytes.

    Nothing is lost, nothing is doubled, nothing is changed, and the mean is right. This works without the inputs.

    Example: fedmr-merge verify recombined
    """
    from fedmr_merge.errors import VerificationError
    from fedmr_merge.recombination.verify import verify as prove

    found = out.rglob("*.safetensors") if out.is_dir() else ()
    total = sum(path.stat().st_size for path in found if path.is_file())
    with bytes_progress("verifying", total) as progress:
        result = prove(out, expand(against) if against else None, progress=progress)
    for line in result.warnings:
        console.complain("warning", line)
    for line in result.skipped:
        console.complain("warning", f"not checked: {line}")
    if result.faults:
        raise VerificationError(console.listed(result.faults), hint=result.hint, faults=result.faults)
    console.say(f"verified {console.plural(result.tensors, 'tensor')}, {console.size(result.nbytes)}, of {out}")
    for line in result.proved:
        console.say(f"  {line}")


def undo(
    out: Output,
    target: Annotated[
        Path, typer.Option("-o", "--out", metavar="PATH", help="Where to write the inputs again; must not exist.")
    ],
) -> None:
    """Rebuild the inputs of a recombination from its outputs alone, byte for byte.

    Example: fedmr-merge undo recombined -o originals
    """
    from fedmr_merge.recombination.undo import undo as rebuild

    with bytes_progress("rebuilding") as progress:
        rebuilt = rebuild(out, target, progress=progress)
    paths, missing = rebuilt.paths, rebuilt.missing
    console.say(
        f"rebuilt {console.plural(len(paths), 'model')}" + (f", as they were before {out}" if rebuilt.proved else "")
    )
    if not rebuilt.proved:
        console.complain(
            "warning",
            f"no SHA-256 of the tensors of {out} is recorded: whether its bytes are still those that were written "
            "could not be checked",
        )
    if missing:
        listed = ", ".join(map(str, missing[:4])) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        console.complain(
            "warning",
            f"no output holds these files as they were, as another slot's or a changed file took their place: {listed}",
        )
    for path in paths:
        console.say(f"  {path}")
    console.say(f"next: fedmr-merge inspect {shlex.quote(str(paths[0]))}")


def lineage(
    out: Output,
    tensor: Annotated[str, typer.Argument(metavar="TENSOR", help="A tensor's name.")],
    slot: Annotated[int | None, typer.Option(min=0, help="One output slot; by default all.")] = None,
) -> None:
    """Show where a tensor came from.

    It is followed through every recombination in a row whose lineage is still there.

    Example: fedmr-merge lineage recombined conv1.weight --slot 0
    """
    from fedmr_merge.lineage.trace import trace

    ends: dict[str, None] = {}
    for chain in trace(out, tensor, slot):
        steps = " <- ".join(f"{place} (slot {o.source_slot}, bytes {o.start} to {o.end})" for o, place, _ in chain)
        console.say(f"slot {chain[0].origin.slot}: {steps}")
        if chain[-1].ends:
            ends[f"{chain[-1].place}: the trace ends here: {chain[-1].ends}"] = None
    for end in ends:
        console.complain("warning", end)


@store_app.command("gc")
def collect(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The store's folder.")] = Path(".fedmr-merge-store"),
) -> None:
    """Remove the shards that no output links to any more.

    Example: fedmr-merge store gc .fedmr-merge-store
    """
    from fedmr_merge.recombination.layouts.shards import collect_garbage

    shards, nbytes = collect_garbage(store)
    console.say(f"{store}: removed {console.plural(shards, 'shard')}, {console.size(nbytes)}")
