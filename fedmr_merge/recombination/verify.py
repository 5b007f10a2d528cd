"""Prove a recombination after the fact.

`verify` trusts nothing but the bytes: it reads every output, compares each tensor's SHA-256 with the lineage, checks
that every (group, slot) of the inputs is used once, takes the mean again and, where the inputs are still there,
compares them too.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.checkpoint.copying import SourceWatch
from fedmr_merge.checkpoint.hashing import Digests, hash_tensors
from fedmr_merge.checkpoint.matching import tensor_differences
from fedmr_merge.checkpoint.open import Checkpoint, open_checkpoint
from fedmr_merge.checkpoint.output import OutputFile
from fedmr_merge.checkpoint.tensor_table import TensorEntry, positions
from fedmr_merge.checkpoint.writer import Progress
from fedmr_merge.errors import Difference, FedmrMergeError, VerificationError
from fedmr_merge.hub.inputs import open_inputs
from fedmr_merge.lineage.model import Lineage
from fedmr_merge.lineage.parents import hash_file
from fedmr_merge.lineage.reader import read_lineage
from fedmr_merge.lineage.writer import record_hashes
from fedmr_merge.merging.options import MeanOptions, out_dtype

if TYPE_CHECKING:
    from fedmr_merge.merging.number_formats import Array


@dataclass
class Verification:
    """What was proved, and what was found wrong."""

    tensors: int = 0  #: output tensors whose bytes were read and compared
    nbytes: int = 0
    proved: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  #: what could not be checked, and why
    warnings: list[str] = field(default_factory=list)  #: what has changed since and is no fault of the outputs' weights


_CONSERVED = "the outputs hold the inputs' tensors, each byte for byte"


def verify(
    out: str | Path, against: Sequence[str | Path | Checkpoint] | None = None, *, progress: Progress | None = None
) -> Verification:
    """Verify a recombination's output folder.

    `against` names the inputs, in the order of their slots; without it the sources named in the lineage are used
    where they are still there. A recombination that was not hashed when it was written is hashed now, and when it
    holds what the inputs hold, that is written into its lineage. Raises VerificationError when the lineage is missing
    or damaged, and when nothing at all vouches for the bytes; everything else that is wrong is in the result's
    `faults`.
    """
    lineage = read_lineage(out)
    result = Verification()
    models = _open_outputs(lineage, result)
    hashes = _check_hashes(lineage, models, result, progress)
    _check_plan(lineage, result)
    _check_sidecars(lineage, models, result)
    inputs = _check_conservation(lineage, hashes, against, result, progress)
    if lineage.mean is not None:
        _check_mean(lineage, models, inputs, result, progress)
    if inputs and not result.faults and not lineage.hashed:
        _record(lineage, hashes, result)
    if not inputs and not result.faults and not lineage.hashed:
        raise VerificationError(
            f"{lineage.folder}: nothing vouches for the bytes: no SHA-256 of them is recorded, "
            f"and {_missing(lineage)[0]}",
            hint="bring the inputs back or name them all with --against, in the order of their slots; "
            "`recombine --hash` records hashes at once",
        )
    return result


def check_outputs(lineage: Lineage, progress: Progress | None = None) -> dict[int, Checkpoint]:
    """Return the outputs of a recombination, opened. Raises VerificationError when they are not what was written."""
    result = Verification()
    models = _open_outputs(lineage, result)
    _check_hashes(lineage, models, result, progress)
    _check_plan(lineage, result)
    if result.faults:
        raise VerificationError(f"{lineage.folder}: " + "; ".join(result.faults[:3]), hint="nothing was written")
    return models


def _open_outputs(lineage: Lineage, result: Verification) -> dict[int, Checkpoint]:
    models = {}
    for slot, path in lineage.outputs.items():
        try:
            models[slot] = open_checkpoint(lineage.folder / path)
        except FedmrMergeError as error:
            result.faults.append(str(error))
    return models


def _check_hashes(
    lineage: Lineage, models: Mapping[int, Checkpoint], result: Verification, progress: Progress | None
) -> dict[int, Digests]:
    """Hash every tensor of the outputs and compare with the lineage. Returns the SHA-256 as they are on disk."""
    found = {slot: hash_tensors(model.tensors, SourceWatch([model]), progress) for slot, model in models.items()}
    result.tensors += sum(map(len, found.values()))
    result.nbytes += sum(model.nbytes for model in models.values())
    unlisted = {slot: set(model.tensors) for slot, model in models.items()}
    for slot, model in models.items():
        for difference in tensor_differences(slot, lineage.parents[slot].tensors, model.tensors):
            result.faults.append(_shown(lineage.outputs[slot], difference))
            unlisted[slot].discard(difference.subject)
    for slot, name, *_, expected in lineage.tensors:
        if slot not in models:
            continue
        unlisted[slot].discard(name)
        if name in models[slot].tensors and expected not in (None, found[slot][name]):
            entry = models[slot].tensors[name]
            result.faults.append(
                f"{entry.file}: tensor {name!r} (bytes {entry.start} to {entry.end}) is not what was written"
            )
    for slot, names in unlisted.items():
        result.faults += [f"{lineage.outputs[slot]}: tensor {name!r} is not in the lineage" for name in sorted(names)]
    return found


def _shown(place: str | Path, difference: Difference) -> str:
    """Tell how a tensor of an output differs from what it must be."""
    if difference.found == "absent":
        return f"{place}: tensor {difference.subject!r} is missing"
    if difference.expected == "absent":
        return f"{place}: tensor {difference.subject!r} is not in the lineage"
    return f"{place}: tensor {difference.subject!r} must be {difference.expected}, found {difference.found}"


def _check_sidecars(lineage: Lineage, models: Mapping[int, Checkpoint], result: Verification) -> None:
    """Compare configs, tokenizers … of the outputs with what they were: people may change them, and should know."""
    for slot, model in models.items():
        for name, sha256 in lineage.donor(slot).sidecars.items() if model.is_folder else ():
            place = model.path / name
            if name not in model.sidecars:
                result.warnings.append(f"{place} is missing")
            elif hash_file(place) != sha256:
                result.warnings.append(f"{place} has changed since it was written")


def _check_plan(lineage: Lineage, result: Verification) -> None:
    """The lineage's entries must say what its plan says, and use every (tensor, slot) of the inputs once."""
    used: dict[int, set[str]] = {slot: set() for slot in range(lineage.plan.slots)}
    doubled = None
    for origin in lineage.tensors:
        if lineage.plan.source(origin.group, origin.slot) != origin.source_slot:
            result.faults.append(f"lineage.json: slot {origin.slot}, {origin.tensor!r}: its source is not the plan's")
        if origin.tensor in used[origin.source_slot]:
            doubled = doubled or origin
        used[origin.source_slot].add(origin.tensor)
    if doubled:
        result.faults.append(f"lineage.json: {doubled.tensor!r} of source slot {doubled.source_slot} is used twice")
    elif len(lineage.outputs) == lineage.plan.slots:
        result.proved.append("every (tensor, slot) of the inputs is used once and only once")


def _check_conservation(
    lineage: Lineage,
    hashes: Mapping[int, Mapping[str, str]],
    against: Sequence[str | Path | Checkpoint] | None,
    result: Verification,
    progress: Progress | None,
) -> Sequence[Checkpoint]:
    """Compare the outputs with the inputs. Returns the inputs, where every tensor was compared and is right."""
    if lineage.hashed and not result.faults:
        result.proved.append("every output tensor has the SHA-256 that was recorded")
    if against is not None and len(against) != lineage.plan.slots:
        raise VerificationError(
            f"{len(against)} inputs given, the recombination had {lineage.plan.slots}", hint="name them in slot order"
        )
    if against is None and (gone := _missing(lineage)):
        result.skipped.append(
            f"comparison with the inputs: {gone[0]}" + ("" if lineage.hashed else "; nothing vouches for the bytes")
        )
        return ()
    if against is None and lineage.hashed:
        return _unchanged(lineage, result, progress)
    opened = open_inputs(against or [source.place(lineage.folder) for source in lineage.parents], progress=progress)
    found = [_hash(checkpoint, progress) for checkpoint in opened]
    wrong = [
        origin
        for origin in lineage.tensors
        if hashes.get(origin.slot, {}).get(origin.tensor) != found[origin.source_slot].get(origin.tensor)
    ]
    for origin in wrong:
        result.faults.append(
            f"{lineage.outputs[origin.slot]}: tensor {origin.tensor!r} differs from its source, "
            f"{opened[origin.source_slot].source}"
        )
    if not wrong and len(hashes) == lineage.plan.slots:
        result.proved.append(_CONSERVED)
    return () if wrong else opened


def _unchanged(lineage: Lineage, result: Verification, progress: Progress | None) -> Sequence[Checkpoint]:
    """Compare the inputs with what is recorded of them: they may go on being used, and then no output is to blame.

    Returns them where none has changed since.
    """
    opened: dict[int, Checkpoint] = {}
    changed: set[int] = set()
    found: dict[int, Digests] = {}
    for source in lineage.parents:
        try:
            (checkpoint,) = open_inputs([source.place(lineage.folder)], progress=progress)
            found[source.slot] = _hash(checkpoint, progress)
        except FedmrMergeError:
            changed.add(source.slot)
        else:
            opened[source.slot] = checkpoint
            if tensor_differences(source.slot, source.tensors, checkpoint.tensors):
                changed.add(source.slot)
    for origin in lineage.tensors:
        slot = origin.source_slot
        if slot not in changed and found[slot][origin.tensor] != origin.sha256:
            changed.add(slot)
    for slot in sorted(changed):
        place = lineage.parents[slot].place(lineage.folder)
        result.warnings.append(f"source {place} has changed since; the outputs hold what it was")
    if not changed and not result.faults and len(lineage.outputs) == lineage.plan.slots:
        result.proved.append(_CONSERVED)
    return () if changed else tuple(opened.values())


def _hash(checkpoint: Checkpoint, progress: Progress | None = None) -> Digests:
    return hash_tensors(checkpoint.tensors, SourceWatch([checkpoint]), progress)


def _missing(lineage: Lineage) -> list[str]:
    """Say of the sources that are not there where they should lie."""
    return [
        f"{source.path} is not in this machine's cache of the Hub; `--against {source.path}` fetches it"
        if source.hub is not None
        else f"{source.place(lineage.folder)} is not there"
        for source in lineage.parents
        if not source.is_there(lineage.folder)
    ]


def _record(lineage: Lineage, hashes: Mapping[int, Mapping[str, str]], result: Verification) -> None:
    """Write down what was compared with the inputs, so that the outputs can be verified when those are gone."""
    mean = None
    if lineage.mean is not None:
        mean = _hash(open_checkpoint(lineage.folder / lineage.mean["path"]))
    try:
        record_hashes(lineage, hashes, mean)
    except OSError as error:
        result.skipped.append(f"recording the SHA-256 of the tensors: lineage.json cannot be written: {error.strerror}")
    else:
        result.proved.append("their SHA-256 is recorded now: from here on they can be verified without the inputs")


def _check_mean(
    lineage: Lineage,
    models: Mapping[int, Checkpoint],
    inputs: Sequence[Checkpoint],
    result: Verification,
    progress: Progress | None,
) -> None:
    """Compare the mean with what is recorded of it. Take it again, from the outputs put back into the order of the
    inputs, or from the inputs where not all outputs were written, and compare every byte.
    """
    assert lineage.mean is not None
    path = lineage.folder / lineage.mean["path"]
    sound = not result.faults
    try:
        mean = open_checkpoint(path)
    except FedmrMergeError as error:
        result.faults.append(str(error))
        return
    if differences := tensor_differences(0, _mean_tensors(lineage), mean.tensors):
        result.faults += [_shown(path, difference) for difference in differences]
        return
    recorded = lineage.mean.get("sha256")
    if recorded is not None:
        found = _hash(mean, progress)
        wrong = [name for name, sha256 in recorded.items() if found[name] != sha256]
        result.faults += [f"{path}: tensor {name!r} is not what was written" for name in wrong]
    if sound and len(models) == lineage.plan.slots:
        entries: Sequence[Mapping[str, TensorEntry]] = original_entries(lineage, models)
        _take_mean_again(lineage, mean, entries, SourceWatch(models.values()), result)
    elif recorded is not None:
        result.proved += [] if wrong else ["global has the SHA-256 that was recorded"]
    elif sound and inputs:
        _take_mean_again(lineage, mean, [c.tensors for c in inputs], SourceWatch(inputs), result)
    else:
        result.skipped.append(
            "the mean: the outputs are not all there, or not what was written, and no SHA-256 of it is recorded"
        )


def _mean_options(lineage: Lineage) -> MeanOptions:
    """Return how the global model was taken."""
    assert lineage.mean is not None
    weights = lineage.mean.get("weights")
    double = lineage.mean["accumulate"] == "float64"
    return MeanOptions(tuple(weights) if weights else None, double, lineage.mean.get("out_dtype"))


def _mean_tensors(lineage: Lineage) -> dict[str, TensorEntry]:
    """Return what the tensors of the global model must be: slot 0's, in the dtype that was asked for."""
    options = _mean_options(lineage)
    return {name: entry._replace(dtype=out_dtype(entry, options)) for name, entry in lineage.parents[0].tensors.items()}


def _take_mean_again(
    lineage: Lineage,
    mean: Checkpoint,
    entries: Sequence[Mapping[str, TensorEntry]],
    watch: SourceWatch,
    result: Verification,
) -> None:
    from fedmr_merge.merging.engine import for_each_piece  # imports numpy

    wrong: list[str] = []
    for file in mean.files:
        expected = OutputFile(file.name, file.header, entries[0])
        descriptor = os.open(file.path, os.O_RDONLY)
        try:

            def compare(position: int, raw: Array, descriptor: int = descriptor, name: str = file.name) -> None:
                if os.pread(descriptor, raw.nbytes, position) != raw.tobytes():
                    wrong.append(f"{name}, byte {position} or after")

            for_each_piece(expected, entries, _mean_options(lineage), watch, compare)
        finally:
            os.close(descriptor)
    if wrong:
        result.faults.append(f"{mean.path}: is not the mean of the models ({sorted(wrong)[0]})")
    else:
        result.proved.append("global is the mean of the models, byte for byte")


def original_entries(lineage: Lineage, models: Mapping[int, Checkpoint]) -> list[_Original]:
    """Return, source slot by source slot, where the tensors of that input are now, among the outputs."""
    tables = [models[slot].tensors for slot in range(lineage.plan.slots)]
    found = [_Original(tables) for _ in tables]
    for origin in lineage.tensors:
        found[origin.source_slot].place(origin.tensor, origin.slot)
    return found


class _Original(Mapping[str, TensorEntry]):
    """The tensors of one input, each where an output has it."""

    def __init__(self, tables: Sequence[Mapping[str, TensorEntry]]) -> None:
        self._tables = tables
        self._positions = positions(tables[0])
        self._slots = array("H", bytes(2 * len(self._positions)))

    def place(self, name: str, slot: int) -> None:
        self._slots[self._positions[name]] = slot

    def __getitem__(self, name: str) -> TensorEntry:
        return self._tables[self._slots[self._positions[name]]][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)
