"""What a lineage records of a mean: its inputs, its place, and how it was taken."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.layers.plan import FORMAT_VERSION as PLAN_VERSION
from fedmr_merge.lineage.model import AVERAGE
from fedmr_merge.lineage.parents import describe_parent
from fedmr_merge.merging.options import MeanOptions


def average_facts(
    parents: Sequence[Checkpoint], out: Path, mean: Mapping[str, Any], ignore_config: Collection[str]
) -> dict[str, Any]:
    """Return what the lineage of an average says: as that of a recombination that moves no tensor."""
    return {
        "operation": AVERAGE,
        "ignore_config": list(ignore_config),
        "sidecars_from": 0,
        "plan": {"format_version": PLAN_VERSION, "slots": len(parents), "permutations": {}},
        "groups": {},
        "sources": (describe_parent(slot, parent, out) for slot, parent in enumerate(parents)),
        "outputs": [],
        "global": mean,
    }


def mean_facts(
    path: str,
    options: MeanOptions,
    hashes: Mapping[str, str] | None,
    adapters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what a lineage says of a mean: its place in the output, how it was taken, the SHA-256 of its tensors.

    `adapters` is given for the exact mean of adapters: the rank that was asked for, and what was lost by it.
    """
    return {
        "path": path,
        "weights": options.weights,
        "accumulate": "float64" if options.double else "float32",
        "out_dtype": options.out_dtype,
        **({} if adapters is None else {"adapters": adapters}),
        "sha256": hashes,
    }
