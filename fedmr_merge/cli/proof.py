"""Commands that need not be trusted: verify, undo, lineage, and the store's garbage collection."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fedmr_merge.cli import console
from fedmr_merge.cli.arguments import expand

Output = Annotated[Path, typer.Argument(help="A folder that `fedmr-merge recombine` wrote.")]

store_app = typer.Typer(help="The store of --layout store.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(verify)
    app.command()(undo)
    app.command()(lineage)


def verify(
    out: Output,
    against: Annotated[
        list[str] | None,
        typer.Option(help="The inputs, in the order of their slots; repeatable. Else as the lineage says."),
    ] = None,
) -> None:
    """Prove a recombination from its bytes.

    Nothing lost, nothing doubled, nothing changed, the mean right. Works without the inputs.
    """
    from fedmr_merge.errors import VerificationError
    from fedmr_merge.recombination.verify import verify as prove

    found = out.rglob("*.safetensors") if out.is_dir() else ()
    total = sum(path.stat().st_size for path in found if path.is_file())
    with console.bytes_progress("verifying", total) as progress:
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
    target: Annotated[Path, typer.Option("-o", "--out", help="Where to write the inputs again; must not exist.")],
) -> None:
    """Rebuild the inputs of a recombination.

    From its outputs alone, byte for byte.
    """
    from fedmr_merge.recombination.undo import undo as rebuild

    with console.bytes_progress("rebuilding", 0) as progress:
        rebuilt = rebuild(out, target, progress=progress)
    paths, missing = rebuilt.paths, rebuilt.missing
    console.say(
        f"rebuilt {console.plural(len(paths), 'model')}" + (f", as they were before {out}" if rebuilt.proved else "")
    )
    if not rebuilt.proved:
        console.complain(
            "warning",
            f"no SHA-256 of the tensors of {out} is recorded: that its bytes are still those that were written "
            "was compared with nothing",
        )
    if missing:
        listed = ", ".join(map(str, missing[:4])) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        console.complain(
            "warning",
            f"no output holds these as they were, with another slot's or a changed file in their place: {listed}",
        )
    for path in paths:
        console.say(f"  {path}")
    console.say(f"next: fedmr-merge inspect {shlex.quote(str(paths[0]))}")


def lineage(
    out: Output,
    tensor: Annotated[str, typer.Argument(help="A tensor's name.")],
    slot: Annotated[int | None, typer.Option(min=0, help="One output slot; all if not given.")] = None,
) -> None:
    """Tell where a tensor came from.

    Through every recombination in a row whose lineage is still there.
    """
    from fedmr_merge.lineage.trace import trace

    ends: dict[str, None] = {}
    for chain in trace(out, tensor, slot):
        steps = " <- ".join(f"{place} (slot {o.source_slot}, bytes {o.start} to {o.end})" for o, place, _ in chain)
        console.say(f"slot {chain[0].origin.slot}: {steps}")
        if chain[-1].ends:
            ends[f"{chain[-1].place}: followed no further: {chain[-1].ends}"] = None
    for end in ends:
        console.complain("warning", end)


@store_app.command("gc")
def collect(
    store: Annotated[Path, typer.Argument(help="The store's folder.")] = Path(".fedmr-merge-store"),
) -> None:
    """Remove the shards that no output links to any more."""
    from fedmr_merge.recombination.layouts.shards import collect_garbage

    shards, nbytes = collect_garbage(store)
    console.say(f"{store}: removed {console.plural(shards, 'shard')}, {console.size(nbytes)}")
