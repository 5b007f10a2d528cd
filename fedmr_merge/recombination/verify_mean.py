"""Verify a mean: by the hashes that are recorded of it, and by taking it again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.checkpoint.copying import SourceWatch
from fedmr_merge.checkpoint.hashing import Digests, hash_tensors
from fedmr_merge.checkpoint.header import reading
from fedmr_merge.checkpoint.matching import tensor_differences
from fedmr_merge.checkpoint.open import Checkpoint, WeightFile, open_checkpoint
from fedmr_merge.checkpoint.output import OutputFile
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.checkpoint.writer import Progress
from fedmr_merge.errors import CheckpointError, Difference, FedmrMergeError, PlanError
from fedmr_merge.hub.inputs import open_inputs
from fedmr_merge.lineage.model import Lineage
from fedmr_merge.merging.adapters import factor_of, is_adapter, mean_entries
from fedmr_merge.merging.options import MeanOptions, out_dtype
from fedmr_merge.recombination.originals import original_entries
from fedmr_merge.recombination.verification import Verification

if TYPE_CHECKING:
    from fedmr_merge.merging.number_formats import Array

Entries = Sequence[Mapping[str, TensorEntry]]


def check_global(
    lineage: Lineage,
    models: Mapping[int, Checkpoint],
    inputs: Sequence[Checkpoint],
    report: Verification,
    progress: Progress | None,
) -> None:
    """Compare the global model of a recombination with what is recorded of it, and take the mean again.

    The mean is taken from the outputs, put back into the order of the inputs, or from the inputs where not all outputs
    were written; every byte is compared.
    """
    sound = report.ok
    mean = _open_mean(lineage, report)
    if mean is None:
        return
    is_recorded = _is_recorded(lineage, mean, report, progress)
    if sound and len(models) == lineage.plan.slots:
        _report_retaken(lineage, mean, original_entries(lineage, models), models.values(), report)
    elif is_recorded is not None:
        report.proved += ["global has the SHA-256 that was recorded"] if is_recorded else []
    elif sound and inputs:
        _report_retaken(lineage, mean, [parent.tensors for parent in inputs], inputs, report)
    else:
        report.skipped.append(
            "the mean: the outputs are not all there, or not what was written, and no SHA-256 of it is recorded"
        )


def check_average(
    lineage: Lineage,
    places: Sequence[str | Path | Checkpoint],
    missing: Sequence[str],
    report: Verification,
    progress: Progress | None,
) -> Digests | None:
    """Compare an average with what is recorded of it, and with the mean of the inputs where they are there.

    `places` are those of the inputs, `missing` says of each that is not there where it should be. Returns the SHA-256
    of the mean where it was proved and is not recorded yet.
    """
    mean = _open_mean(lineage, report)
    if mean is None:
        return None
    report.tensors, report.nbytes = len(mean.tensors), mean.nbytes
    is_recorded = _is_recorded(lineage, mean, report, progress)
    if is_recorded:
        report.proved.append("every tensor has the SHA-256 that was recorded")
    if missing:
        report.skipped.append(f"comparison with the inputs: {missing[0]}")
        if is_recorded is None:
            report.nothing_vouches(lineage.folder, missing[0])
        return None
    try:
        inputs = open_inputs(places, progress=progress)
        wrong = _other_tensors(lineage, inputs) or _average_difference(lineage, mean, inputs)
    except FedmrMergeError as error:
        if not is_recorded:
            raise
        report.warnings.append(f"the inputs have changed since: {error}; the mean is what was written")
        return None
    if wrong is None:
        report.proved.append(f"it is {_meaning(lineage, mean, 'inputs')}")
        return hash_tensors(mean.tensors, SourceWatch([mean])) if is_recorded is None else None
    if is_recorded:
        report.warnings.append(f"the inputs have changed since, or are others: {wrong}; the mean is what was written")
    else:
        report.faults.append(f"{mean.path}: is not the mean of the inputs: {wrong}")
    return None


def _average_difference(lineage: Lineage, mean: Checkpoint, inputs: Sequence[Checkpoint]) -> str | None:
    """Return how an average differs from that of the inputs, None where it does not."""
    if lineage.exact_adapters is None:
        return _first_difference(lineage, mean, [checkpoint.tensors for checkpoint in inputs], inputs)
    from fedmr_merge.recombination.verify_adapters import first_difference  # imports numpy

    try:
        return first_difference(lineage, mean, inputs, _mean_options(lineage).weights)
    except (CheckpointError, PlanError) as error:
        return str(error)


def _meaning(lineage: Lineage, mean: Checkpoint, models: str) -> str:
    """Return what a mean was proved to be: that of adapters' factors is not that of the adapters."""
    exact = lineage.exact_adapters
    if exact is not None and exact["rank"] is None:
        return f"the exact mean of what the {models}' adapters add to their model, their factors A and B stacked"
    if exact is not None:
        return (
            f"the adapter of rank {exact['rank']} nearest to the exact mean of the {models}' adapters, to rounding: "
            f"{exact['lost']:.2%} of the norm is lost"
        )
    if is_adapter(mean):
        return (
            f"the mean of the {models}' factors A and B, each apart, byte for byte; that is not the mean of what the "
            "adapters add to their model"
        )
    return f"the mean of the {models}, byte for byte"


def _other_tensors(lineage: Lineage, inputs: Sequence[Checkpoint]) -> str | None:
    """Return how the inputs differ in their tensors from what is recorded of them, None where they do not."""
    for parent, checkpoint in zip(lineage.parents, inputs, strict=True):
        if differences := tensor_differences(parent.slot, parent.tensors, checkpoint.tensors):
            return shown_difference(checkpoint.location, differences[0])
    return None


def _open_mean(lineage: Lineage, report: Verification) -> Checkpoint | None:
    """Return the mean, or None with its faults reported."""
    assert lineage.mean is not None
    path = lineage.folder / lineage.mean["path"]
    try:
        mean = open_checkpoint(path)
    except FedmrMergeError as error:
        report.faults.append(str(error))
        return None
    options = _mean_options(lineage)
    first: Mapping[str, TensorEntry] = lineage.parents[0].tensors
    if lineage.exact_adapters is not None:
        first = mean_entries([parent.tensors for parent in lineage.parents], lineage.exact_adapters["rank"])
    expected = {name: entry._replace(dtype=out_dtype(entry, options)) for name, entry in first.items()}
    differences = tensor_differences(0, expected, mean.tensors)
    report.faults += [shown_difference(path, difference) for difference in differences]
    return None if differences else mean


def _is_recorded(lineage: Lineage, mean: Checkpoint, report: Verification, progress: Progress | None) -> bool | None:
    """Whether a mean has the SHA-256 that is recorded; None where none is. Reports the tensors that do not."""
    recorded = (lineage.mean or {}).get("sha256")
    if recorded is None:
        return None
    found = hash_tensors(mean.tensors, SourceWatch([mean]), progress)
    wrong = [name for name, sha256 in recorded.items() if found[name] != sha256]
    for name in wrong:
        factor = factor_of(name) if lineage.exact_adapters is not None else None
        what = f"tensor {name!r}" + (f", {factor}," if factor else "")
        report.faults.append(f"{mean.path}: {what} is not what was written")
    return not wrong


def _mean_options(lineage: Lineage) -> MeanOptions:
    """Return how the mean was taken."""
    assert lineage.mean is not None
    weights = lineage.mean.get("weights")
    double = lineage.mean["accumulate"] == "float64"
    return MeanOptions(tuple(weights) if weights else None, double, lineage.mean.get("out_dtype"))


def _report_retaken(
    lineage: Lineage, mean: Checkpoint, entries: Entries, models: Iterable[Checkpoint], report: Verification
) -> None:
    wrong = _first_difference(lineage, mean, entries, models)
    if wrong is None:
        report.proved.append(f"global is {_meaning(lineage, mean, 'models')}")
    else:
        report.faults.append(f"{mean.path}: is not the mean of the models ({wrong})")


def _first_difference(lineage: Lineage, mean: Checkpoint, entries: Entries, models: Iterable[Checkpoint]) -> str | None:
    """Take a mean again and return where it first differs, None where every byte is the same."""
    from fedmr_merge.merging.engine import for_each_piece  # imports numpy

    wrong: list[str] = []
    watch = SourceWatch(models)
    for file in mean.files:
        expected = OutputFile(file.name, file.header, entries[0])
        with reading(file.path):
            descriptor = os.open(file.path, os.O_RDONLY)
        try:

            def compare(position: int, raw: Array, descriptor: int = descriptor, file: WeightFile = file) -> None:
                with reading(file.path):
                    written = os.pread(descriptor, raw.nbytes, position)
                if written != raw.tobytes():
                    wrong.append(f"{file.name}, byte {position} or after")

            for_each_piece(expected, entries, _mean_options(lineage), watch, compare)
        finally:
            os.close(descriptor)
    return min(wrong, default=None)


def shown_difference(place: str | Path, difference: Difference) -> str:
    """Return a sentence on how a tensor of an output differs from what it must be."""
    if difference.found == "absent":
        return f"{place}: tensor {difference.subject!r} is missing"
    if difference.expected == "absent":
        return f"{place}: tensor {difference.subject!r} is not in the lineage"
    return f"{place}: tensor {difference.subject!r} must be {difference.expected}, found {difference.found}"
