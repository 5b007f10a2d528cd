"""The command `average`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmr_merge.cli import console, progress
from fedmr_merge.cli.arguments import (
    Accumulate,
    Checkpoints,
    Exact,
    IgnoreConfig,
    MaxMemory,
    MaxShard,
    Out,
    OutDtype,
    Rank,
    RequireFinite,
    Weights,
    expand,
    fetching,
    mean_options,
    size_in_bytes,
    warn_adapters,
    warn_left_out,
    warn_mean,
)
from fedmr_merge.cli.help import App
from fedmr_merge.errors import PlanError

if TYPE_CHECKING:
    from fedmr_merge.checkpoint.open import Checkpoint
    from fedmr_merge.merging.options import MeanOutcome


def register(app: App) -> None:
    """Add the command."""
    app.command(rich_help_panel="Merge checkpoints")(average)


def average(
    checkpoints: Checkpoints,
    out: Out = Path("average"),
    weights: Weights = None,
    accumulate: Accumulate = "float32",
    out_dtype: OutDtype = None,
    max_memory: MaxMemory = None,
    max_shard_size: MaxShard = None,
    ignore_config: IgnoreConfig = None,
    require_finite: RequireFinite = False,
    exact: Exact = False,
    rank: Rank = None,
) -> None:
    """Average K checkpoints into one.

    OUT becomes a folder with model.safetensors, or with shards as the first input has them. An OUT that is named
    ….safetensors becomes that one file.

    Example: fedmr-merge average a.safetensors b.safetensors -o mean.safetensors --weights 0.75,0.25
    """
    from fedmr_merge.checkpoint.writer import refuse_unwritable
    from fedmr_merge.hub.inputs import open_inputs, refuse_twice
    from fedmr_merge.merging.average import average as take_average
    from fedmr_merge.merging.average import plan_mean

    refuse_unwritable(out)
    options = mean_options(weights, accumulate, out_dtype, max_memory)
    exact = exact or rank is not None
    if exact and (accumulate != "float32" or out_dtype or max_memory or max_shard_size):
        raise PlanError(
            "--exact and --rank write one adapter, summed in float64, in the dtype of the first",
            hint="leave out --accumulate, --out-dtype, --max-memory and --max-shard-size",
        )
    wanted: dict[str, Any] = {"options": options, "ignore_config": ignore_config or ()}
    shards: dict[str, Any] = {"max_shard_bytes": size_in_bytes("--max-shard-size", max_shard_size)}

    def check(opened: Sequence[Checkpoint]) -> None:
        refuse_twice(opened)
        if exact:
            from fedmr_merge.merging.exact_adapters import plan_exact  # imports numpy

            plan_exact(opened, out, rank=rank, **wanted)
        else:
            plan_mean(opened, out, **wanted, **shards)

    with fetching(inputs := expand(checkpoints)) as fetched:
        opened = open_inputs(inputs, check, progress=fetched)
    refuse_twice(opened)
    warn_left_out(opened)
    if not exact:
        warn_adapters(opened)
    choice: dict[str, Any] = {"exact": exact, "rank": rank, "require_finite": require_finite}
    with progress.bytes_progress("averaging", opened[0].nbytes if opened else None) as done:
        outcome = take_average(opened, out, **wanted, **shards, **choice, progress=done)
    _report(opened, out, outcome, rank)


def _report(opened: Sequence[Checkpoint], out: Path, outcome: MeanOutcome, rank: int | None) -> None:
    """Print what was written, and what can be done with it."""
    warn_mean(opened, outcome.not_finite, outcome.differing_integers)
    if outcome.rank is None:
        console.say(f"averaged {console.plural(len(opened), 'model')} into {out}")
    else:
        loss = "exact" if rank is None else f"{outcome.lost:.2%} of its norm is lost"
        console.say(f"averaged {console.plural(len(opened), 'adapter')} into {out}, of rank {outcome.rank}: {loss}")
    quoted = shlex.quote(str(out))
    verify = f"fedmr-merge verify {quoted}   or   " if out.is_dir() else ""
    console.say(f"next: {verify}fedmr-merge inspect {quoted}   or   fedmr-merge push {quoted} ORG/NAME --dry-run")
