"""Take the mean of K checkpoints of any size, the global model, tensor by tensor in pieces that fit a cache.

Floats are added up in float32 (in float64 for float64 tensors or on request) in the order of the slots and divided
once. Every number depends on its own K numbers alone, so that the result is the same bit for bit for any number of
threads. Integer and bool tensors have no mean: slot 0's copy is kept, and reported where the models differ in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.checkpoint.copying import SourceWatch
from fedmr_merge.checkpoint.folder import STANDARD_NAMES, WEIGHTS
from fedmr_merge.checkpoint.hashing import hash_tensors
from fedmr_merge.checkpoint.header import new_header
from fedmr_merge.checkpoint.header_json import DTYPE_BITS
from fedmr_merge.checkpoint.matching import match_checkpoints
from fedmr_merge.checkpoint.open import Checkpoint, WeightFile
from fedmr_merge.checkpoint.output import OutputFile, OutputModel, lay_out
from fedmr_merge.checkpoint.quantisation import ALWAYS_CODES, find_scales
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.checkpoint.writer import Progress, refuse_unwritable, refuse_without_space, staged_output, write_all
from fedmr_merge.errors import CheckpointError, OutputError, PlanError
from fedmr_merge.hub.inputs import open_inputs, refuse_inside
from fedmr_merge.lineage.model import HERE, LINEAGE_FILE
from fedmr_merge.lineage.parents import recorded_place
from fedmr_merge.lineage.writer import HASHED_AT_ONCE_BYTES, write_lineage
from fedmr_merge.merging.adapters import refuse_other_scales
from fedmr_merge.merging.options import (
    KEPT,
    TORCH_NAMES,
    MeanOptions,
    MeanOutcome,
    out_dtype,
)
from fedmr_merge.merging.record import average_facts, mean_facts
from fedmr_merge.plain_values import strings

if TYPE_CHECKING:
    from fedmr_merge.merging.number_formats import Array


def average(
    checkpoints: Sequence[str | Path | Checkpoint],
    out: str | Path,
    *,
    options: MeanOptions | None = None,
    require_finite: bool = False,
    max_shard_bytes: int | None = None,
    ignore_config: Collection[str] = (),
    exact: bool = False,
    rank: int | None = None,
    progress: Progress | None = None,
) -> MeanOutcome:
    """Write the mean of K checkpoints of one architecture.

    A folder gets a `lineage.json` that names the inputs and how the mean was taken: `verify` checks the mean by it.
    A single file gets none, because a file and its lineage could not appear at the same moment.

    The means of the factors A and B of LoRA adapters do not multiply to the mean of what the adapters add to their
    model. `exact` writes that mean, as one adapter with the sum of their ranks, and `rank` the nearest to it of a
    smaller rank; adapters of other ranks and other `lora_alpha` are rescaled.

    Args:
        checkpoints: the K models, slot by slot, as for `recombine`; one that is named twice counts twice.
        out: what to write, which must not exist: a file where it is named `….safetensors`, else a folder.
        options: weights, precision and dtype of the mean, and bounds on threads and memory.
        require_finite: whether NaN and infinite numbers are refused.
        max_shard_bytes: the largest shard, where the mean is to be sharded anew; as slot 0 if None.
        ignore_config: keys of the configuration that may differ between the models.
        exact: whether the exact mean of PEFT adapters is taken. It is added up in float64 and written in the dtype of
            slot 0, so that of the options only the weights may be set.
        rank: the rank of an adapter that is nearest to the exact mean; implies `exact`.
        progress: called with the number of bytes just written, from several threads.

    Returns:
        What was met: NaN and infinite numbers, tensors of integers that differ between the models and are slot 0's,
        and for adapters the rank and the share of the norm that was lost.

    Raises:
        CheckpointError: a model cannot be read, changed while it was read, or is not finite where that is required.
        HubError: the Hub refused, or could not be reached.
        LayerMismatchError: the models differ in tensors, dtypes, shapes or configuration.
        PlanError: the weights do not fit, a dtype has no mean, a memory bound cannot be kept, or the adapters have no
            exact mean.
        OutputError: `out` exists, cannot be written or does not fit on the disk.

    Examples:
        >>> from fedmr_merge import average
        >>> average(["a.safetensors", "b.safetensors"], "mean.safetensors").not_finite
        ()
    """
    out, options, ignore_config = Path(out), options or MeanOptions(), strings(ignore_config)
    refuse_unwritable(out)
    if exact or rank is not None:
        from fedmr_merge.merging.exact_adapters import average_adapters  # imports numpy

        _refuse_options_of_a_plain_mean(options, max_shard_bytes)
        return average_adapters(checkpoints, out, options, rank=rank, ignore_config=ignore_config, progress=progress)
    plan = partial(plan_mean, out=out, options=options, max_shard_bytes=max_shard_bytes, ignore_config=ignore_config)
    opened = open_inputs(checkpoints, plan)
    return _write_average(opened, plan(opened), out, options, ignore_config, progress, require_finite=require_finite)


def _refuse_options_of_a_plain_mean(options: MeanOptions, max_shard_bytes: int | None) -> None:
    if options != MeanOptions(options.weights) or max_shard_bytes is not None:
        raise PlanError(
            "the exact mean of adapters is one file, added up in float64, in the dtype of slot 0",
            hint="give no other options of the mean than weights, and no size of shards",
        )


def _write_average(
    opened: Sequence[Checkpoint],
    model: OutputModel,
    out: Path,
    options: MeanOptions,
    ignore_config: Collection[str],
    progress: Progress | None,
    *,
    require_finite: bool,
) -> MeanOutcome:
    watch = SourceWatch(opened)
    with staged_output(out) as staging:
        target = staging
        if not model.is_folder and out.suffix != WEIGHTS:
            staging.mkdir()
            target = staging / STANDARD_NAMES[0]
        met = write_mean(opened, model, target, options, watch, progress, require_finite=require_finite)
        watch.check()
        if out.suffix != WEIGHTS:
            hashes = None
            if model.nbytes <= HASHED_AT_ONCE_BYTES:
                hashes = hash_tensors(model.entries(target), SourceWatch([]))
            mean = mean_facts(HERE if target == staging else target.name, options, hashes)
            write_lineage(staging / LINEAGE_FILE, average_facts(opened, out, mean, ignore_config), ())
    return met


def plan_mean(
    checkpoints: Sequence[Checkpoint],
    out: Path,
    options: MeanOptions,
    max_shard_bytes: int | None = None,
    ignore_config: Collection[str] = (),
) -> OutputModel:
    """Return the mean to write, from the models' headers alone. Raises what `average` raises for them."""
    match_checkpoints(checkpoints, ignore_config=ignore_config)
    refuse_other_scales(checkpoints)
    check_mean(checkpoints, options)
    refuse_inside(out, checkpoints, "-o")
    if out.suffix != WEIGHTS:
        for checkpoint in checkpoints:
            recorded_place(checkpoint, out)  # refuses what a lineage could not name
    model = mean_layout(checkpoints[0], options, max_shard_bytes)
    model = _one_file(model, out) if out.suffix == WEIGHTS else model
    refuse_without_space(out, model.nbytes + model.sidecar_bytes)
    return model


def _one_file(model: OutputModel, out: Path) -> OutputModel:
    names = [file.name for file in model.files]
    if len(names) > 1 or model.files[0].prefix:
        raise OutputError(
            out,
            f"names one file, and the mean is a folder with {', '.join(names[:2])}{' …' if len(names) > 2 else ''}",
            hint="name a folder with -o, or give a --max-shard-size that holds the whole mean",
        )
    return replace(model, is_folder=False)


def check_mean(checkpoints: Sequence[Checkpoint], options: MeanOptions) -> None:
    """Raise PlanError when no mean can be taken of these checkpoints with these options."""
    options.check(len(checkpoints))
    options.plan_work()
    tensors = checkpoints[0].tensors
    _refuse_codes(tensors)
    for name, entry in tensors.items():
        if entry.dtype not in KEPT and (entry.dtype == "C64") != (out_dtype(entry, options) == "C64"):
            raise PlanError(
                f"{name}: {entry.dtype} cannot be written as {options.out_dtype}, one of them is complex", tensor=name
            )


def _refuse_codes(tensors: Mapping[str, TensorEntry]) -> None:
    """Raise PlanError for quantised weights: the mean of the codes is not that of the numbers they stand for."""
    scales = dict(find_scales(tensors))
    names = [name for name, entry in tensors.items() if name in scales or entry.dtype in ALWAYS_CODES]
    if names:
        name = names[0]
        beside = f"whose scales are in {scales[name]}" if name in scales else "with a scale beside them"
        others = f"; so are {len(names) - 1} more tensors" if len(names) > 1 else ""
        raise PlanError(
            f"{name}: {tensors[name].dtype} numbers are codes, {beside}, and have no mean{others}",
            hint="recombine with --no-global, or convert the models to a float dtype first",
            tensor=name,
        )


def mean_layout(donor: Checkpoint, options: MeanOptions, max_shard_bytes: int | None = None) -> OutputModel:
    """Lay the mean out like a model, with the headers that its dtypes need; shards are measured in these dtypes."""
    if options.out_dtype is None:
        return lay_out(donor, donor.tensors, max_shard_bytes=max_shard_bytes)
    written = replace(donor, files=tuple(_in_dtype(file, options) for file in donor.files))
    model = lay_out(written, donor.tensors, donor, max_shard_bytes)  # the donor's index states another size
    return replace(model, torch_dtype=TORCH_NAMES[options.out_dtype])


def _in_dtype(file: WeightFile, options: MeanOptions) -> WeightFile:
    tensors = []
    for name, entry in file.header.tensors.items():
        dtype = out_dtype(entry, options)
        tensors.append((name, dtype, entry.shape, entry.parameters * DTYPE_BITS[dtype] // 8))
    return replace(file, header=new_header(tensors, file.header.metadata, Path(file.name)))


def write_mean(
    checkpoints: Sequence[Checkpoint],
    model: OutputModel,
    target: Path,
    options: MeanOptions,
    watch: SourceWatch,
    progress: Progress | None = None,
    *,
    require_finite: bool = False,
) -> MeanOutcome:
    """Write the mean at `target`, laid out as `model`.

    Raises CheckpointError for NaN and infinite numbers if `require_finite` is set.
    """
    model.prepare(target)
    entries = [checkpoint.tensors for checkpoint in checkpoints]
    met = [_write_file(f, entries, model.file_path(target, f), options, watch, progress) for f in model.files]
    found = tuple(item for outcome in met for item in outcome.not_finite)
    if found and require_finite:
        place, words = found[0].describe([checkpoint.location for checkpoint in checkpoints])
        raise CheckpointError(
            place,
            words + (f", and so do {len(found) - 1} more" if len(found) > 1 else ""),
            hint="choose a larger --out-dtype, or run without --require-finite"
            if found[0].slot is None
            else "leave out the model, or run without --require-finite",
        )
    return MeanOutcome(found, tuple(name for outcome in met for name in outcome.differing_integers))


def _write_file(
    file: OutputFile,
    entries: Sequence[Mapping[str, TensorEntry]],
    path: Path,
    options: MeanOptions,
    watch: SourceWatch,
    progress: Progress | None,
) -> MeanOutcome:
    from fedmr_merge.merging.engine import for_each_piece  # imports numpy

    with path.open("xb", buffering=0) as stream:
        write_all(stream.fileno(), file.header.raw)

        def write(position: int, raw: Array) -> None:
            write_all(stream.fileno(), raw.data, position)
            if progress:
                progress(raw.nbytes)

        return for_each_piece(file, entries, options, watch, write)
