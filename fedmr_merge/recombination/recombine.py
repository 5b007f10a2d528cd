"""Recombine checkpoints: prepare (plan and check, by headers), then write (copy bytes, and average). No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmr_merge.checkpoint.copying import SourceWatch
from fedmr_merge.checkpoint.folder import WEIGHTS_FILE
from fedmr_merge.checkpoint.hashing import Digests, hash_tensors
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.writer import Progress, staged_output
from fedmr_merge.layers.plan import FORMAT_VERSION as PLAN_VERSION
from fedmr_merge.lineage.model import LINEAGE_FILE, RECOMBINE, TensorOrigin
from fedmr_merge.lineage.parents import describe_parent
from fedmr_merge.lineage.writer import write_lineage
from fedmr_merge.merging.average import write_mean
from fedmr_merge.merging.options import MeanOutcome, NotFinite
from fedmr_merge.merging.record import mean_facts
from fedmr_merge.recombination.layouts.base import StoreReport
from fedmr_merge.recombination.options import OutputOptions, PlanOptions
from fedmr_merge.recombination.prepare import PreparedRecombination, prepare_recombination

GLOBAL = "global"  #: the folder of the global model, in the output


@dataclass(frozen=True)
class Outcome:
    """What a recombination wrote."""

    work: PreparedRecombination = field(repr=False)  #: what was planned
    out: Path
    not_finite: tuple[NotFinite, ...]  #: NaN and infinite numbers that were found while the mean was taken
    #: Tensors of integers that differ between the models, by name: they have no mean, and slot 0's are in it.
    differing_integers: tuple[str, ...]
    store: StoreReport | None  #: what writing into a store cost, if that was the layout


def recombine(
    checkpoints: Sequence[str | Path | Checkpoint],
    out: str | Path,
    options: PlanOptions | None = None,
    output: OutputOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Outcome:
    """Recombine K checkpoints of one architecture into K new ones, byte-exact, and their mean.

    Writes `out/slot-00.safetensors …` (folders where the inputs are folders), `out/global/` (the mean) and
    `out/lineage.json`, which says for every output tensor where its bytes came from. `out` appears complete or not at
    all; the inputs are only read.

    Args:
        checkpoints: the K models, slot by slot: safetensors files, model folders, Hub ids
            `org/name[@revision][/subfolder]`, or checkpoints that are open already. Patterns such as `*.safetensors`
            are expanded by a shell, and not here: give `sorted(Path(".").glob("*.safetensors"))`; in a Hub id they may
            stand for several models. A model that is named twice takes two slots; the command line refuses that.
        out: the folder to write, which must not exist.
        options: how the plan is drawn.
        output: what is written, and in which layout.
        progress: called with the number of bytes just written, from several threads.

    Returns:
        What was planned and written.

    Raises:
        CheckpointError: a model cannot be read, or changed while it was read.
        HubError: the Hub refused, or could not be reached.
        LayerMismatchError: the models differ in tensors, dtypes, shapes or configuration.
        RuleError: there is no such layer rule, or it leaves a tensor without a group.
        PlanError: the plan or the options do not fit the models.
        OutputError: `out` exists, cannot be written or does not fit on the disk.

    Examples:
        >>> from fedmr_merge import OutputOptions, PlanOptions, recombine
        >>> outcome = recombine(
        ...     ["a.safetensors", "b.safetensors"], "shuffled", PlanOptions(seed=1), OutputOptions(mean=None)
        ... )
        >>> sorted(path.name for path in outcome.out.iterdir())
        ['lineage.json', 'slot-00.safetensors', 'slot-01.safetensors']
    """
    work = prepare_recombination(checkpoints, out, options, output, progress=progress)
    return write_recombination(work, progress=progress)


def write_recombination(work: PreparedRecombination, *, progress: Progress | None = None) -> Outcome:
    """Write what was prepared. Raises CheckpointError where an input has changed since, and OutputError."""
    watch = SourceWatch(work.parents)
    with staged_output(work.out) as staging:
        staging.mkdir()
        written = work.output.layout.write(work, staging, watch, progress)
        mean, met = _write_global(work, staging, watch, progress)
        watch.check()
        write_lineage(staging / LINEAGE_FILE, _facts(work, mean), _origins(work, written.digests))
    return Outcome(work, work.out, met.not_finite, met.differing_integers, written.store)


def _write_global(
    work: PreparedRecombination, staging: Path, watch: SourceWatch, progress: Progress | None
) -> tuple[dict[str, Any] | None, MeanOutcome]:
    """Write the global model, if it was asked for. Returns what its lineage says of it, and what was met."""
    if work.mean is None or work.output.mean is None:
        return None, MeanOutcome()
    target = staging / GLOBAL
    if not work.mean.is_folder:
        target.mkdir()
        target /= WEIGHTS_FILE
    met = write_mean(
        work.parents,
        work.mean,
        target,
        work.output.mean,
        watch,
        progress,
        require_finite=work.output.require_finite,
    )
    hashes = hash_tensors(work.mean.entries(target), SourceWatch([])) if work.hashes else None
    return mean_facts(target.relative_to(staging).as_posix(), work.output.mean, hashes), met


def _origins(work: PreparedRecombination, digests: Mapping[int, Digests]) -> Iterator[TensorOrigin]:
    names = {file.path: file.name for parent in work.parents for file in parent.files}
    groups = work.grouping.group_of
    for slot in work.models:
        for name, entry in work.sources(slot).items():
            group = groups[name]
            yield TensorOrigin(
                slot=slot,
                tensor=name,
                group=group,
                source_slot=work.plan.source(group, slot),
                source_file=names[entry.file],
                start=entry.start,
                end=entry.end,
                sha256=digests[slot][name] if digests else None,
            )


def _facts(work: PreparedRecombination, mean: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the lineage says besides its tensors. The keys are those on disk, and stay as they are."""
    drawn = work.options
    return {
        "operation": RECOMBINE,
        "rule": work.grouping.rule,
        "rule_found": work.grouping.found,
        "drawn": None
        if drawn.plan
        else {"seed": drawn.seed, "round": drawn.round, "rounds": drawn.rounds, "probability": drawn.probability},
        "ignore_config": list(drawn.ignore_config),
        "sidecars_from": work.output.sidecars_from,
        # As `plan.to_json()`, without a list made for each of many groups.
        "plan": {"format_version": PLAN_VERSION, "slots": work.plan.slots, "permutations": work.plan.permutations},
        "groups": {group.name: group.tensors for group in work.grouping.groups},
        "sources": (describe_parent(slot, parent, work.out) for slot, parent in enumerate(work.parents)),
        "outputs": [
            {"slot": slot, "path": model.path(work.out, work.name(slot)).name} for slot, model in work.models.items()
        ],
        "global": mean,
    }
