"""Execute a recombination plan: over checkpoints, by byte copy, or over stacked tensors.

No tensor is decoded here and torch is not imported.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fedmr_merge.checkpoint.copying import SourceWatch, assemble, assemble_hashed
from fedmr_merge.checkpoint.hashing import Digests, hash_tensors
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.output import OutputFile
from fedmr_merge.checkpoint.writer import Progress, refuse_existing, refuse_unwritable, staged_output
from fedmr_merge.errors import OutputError
from fedmr_merge.hub.inputs import lies_in, refuse_inside
from fedmr_merge.layers.plan import FORMAT_VERSION as PLAN_VERSION
from fedmr_merge.layers.plan import LayerGroup, RecombinationPlan
from fedmr_merge.lineage.model import LINEAGE_FILE, TensorOrigin
from fedmr_merge.lineage.parents import describe_parent, recorded_place
from fedmr_merge.lineage.writer import write_lineage
from fedmr_merge.merging.average import write_mean
from fedmr_merge.merging.options import NotFinite
from fedmr_merge.recombination.layouts.store import StoreReport, check_store, store_folder, write_in_store
from fedmr_merge.recombination.planning import OutputOptions, PlanOptions, Recombination, plan_recombination

GLOBAL = "global"


class Stacked(Protocol):
    """A tensor or array [K, ...]: row i belongs to slot i."""

    def __getitem__(self, rows: list[int], /) -> Any: ...


StackedT = TypeVar("StackedT", bound=Stacked)


@dataclass(frozen=True)
class Outcome:
    """What a recombination wrote."""

    work: Recombination = field(repr=False)
    out: Path
    not_finite: tuple[NotFinite, ...]  #: met while the mean was taken
    store: StoreReport | None


def recombine_stacked(
    plan: RecombinationPlan, groups: Sequence[LayerGroup], stacked: Mapping[str, StackedT]
) -> dict[str, StackedT]:
    """Recombine K models held as stacked tensors [K, ...]: row i of the result is the model of slot i. The inputs are
    not changed.

    Raises PlanError when the plan is not one for these groups.
    """
    plan.check(groups, plan.slots)
    return {name: stacked[name][list(plan.permutations[group.name])] for group in groups for name in group.tensors}


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
    all; the inputs are only read. `progress` is called with the number of bytes just written, from several threads.

    Raises CheckpointError, LayerMismatchError, RuleError or PlanError for inputs that cannot be recombined, and
    OutputError when `out` exists, cannot be written or does not fit on the disk.
    """
    refuse_existing(Path(out))
    check = partial(check_target, out=Path(out))
    return execute(plan_recombination(checkpoints, options, output, check=check), out, progress=progress)


def execute(work: Recombination, out: str | Path, *, progress: Progress | None = None) -> Outcome:
    """Write what was planned; see `recombine`."""
    out, output = Path(out), work.output
    check_target(work, out)
    watch = SourceWatch(work.checkpoints)
    report: StoreReport | None = None
    not_finite: list[NotFinite] = []
    with staged_output(out) as staging:
        staging.mkdir()
        if output.in_store:
            report, digests = write_in_store(work, staging, store_folder(output.store, out), watch, progress)
        else:
            digests = _write_models(work, staging, watch, progress)
        mean = None
        if output.mean is not None and work.mean is not None:
            target = staging / GLOBAL
            if not work.mean.is_folder:
                target.mkdir()
                target /= "model.safetensors"
            not_finite = write_mean(
                work.checkpoints, work.mean, target, output.mean, watch, progress, require_finite=output.require_finite
            )
            mean = {
                "path": target.relative_to(staging).as_posix(),
                "weights": output.mean.weights,
                "accumulate": "float64" if output.mean.double else "float32",
                "out_dtype": output.mean.out_dtype,
                "sha256": hash_tensors(work.mean.entries(target), SourceWatch([])) if work.hashes else None,
            }
        watch.check()
        write_lineage(staging / LINEAGE_FILE, _facts(work, out, mean), _origins(work, digests))
    return Outcome(work, out, tuple(not_finite), report)


def check_target(work: Recombination, out: Path) -> None:
    """Raise OutputError when the output, or its store, cannot be written: it exists, its place is closed or too small,
    or it would lie in an input, which is only read, or the store in the output. Nothing is written.

    Raises CheckpointError when the lineage could not name an input.
    """
    for checkpoint in work.checkpoints:
        recorded_place(checkpoint, out)
    refuse_unwritable(out)
    refuse_inside(out, work.checkpoints, "-o")
    if not work.output.in_store:
        check_space(out, work.bytes_to_write)
        return
    store = store_folder(work.output.store, out)
    refuse_inside(store, work.checkpoints, "--store")
    if lies_in(store, out):
        raise OutputError(store, f"lies in the output, {out}", hint="choose another place with --store")
    check_store(store)


def check_space(out: Path, nbytes: int) -> None:
    """Raise OutputError when the disk has not the room for `nbytes`."""
    free = free_bytes(out)
    if nbytes > free:
        raise OutputError(
            out, f"needs {nbytes:,} bytes, {free:,} are free", hint="free some space or choose another place with -o"
        )


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system that a path is, or would be, on."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _write_models(
    work: Recombination, staging: Path, watch: SourceWatch, progress: Progress | None
) -> Mapping[int, Digests]:
    jobs: list[tuple[int, OutputFile, Path]] = []
    for slot, model in work.models.items():
        path = model.path(staging, work.name(slot))
        model.prepare(path)
        jobs += [(slot, file, model.file_path(path, file)) for file in model.files]

    def write(job: tuple[int, OutputFile, Path]) -> None:
        slot, file, path = job
        if not work.hashes:
            assemble(path, file.header.raw, file.segments, watch, progress)
            return
        found = assemble_hashed(path, file.header.raw, file.segments, watch, progress)
        digests[slot].fill(file.tensors, found)

    digests = {slot: Digests(work.checkpoints[slot].tensors) for slot in work.models} if work.hashes else {}
    # Two cores copy twice as fast as one, and hashing does not hold the interpreter's lock.
    with ThreadPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
        for _ in pool.map(write, jobs):
            pass
    return digests


def _origins(work: Recombination, digests: Mapping[int, Digests]) -> Iterator[TensorOrigin]:
    names = {file.path: file.name for checkpoint in work.checkpoints for file in checkpoint.files}
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


def _facts(work: Recombination, out: Path, mean: Mapping[str, Any] | None) -> dict[str, Any]:
    drawn = work.options
    return {
        "operation": "recombine",
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
        "sources": (describe_parent(slot, source, out) for slot, source in enumerate(work.checkpoints)),
        "outputs": [
            {"slot": slot, "path": model.path(out, work.name(slot)).name} for slot, model in work.models.items()
        ],
        "global": mean,
    }
