"""Verify a recombination or an average after the fact.

`verify` trusts nothing but the bytes: it reads every output, compares each tensor's SHA-256 with the lineage, checks
that every (tensor, slot) of the inputs is used once, takes the mean again and, where the inputs are still there,
compares them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmr_merge.checkpoint.copying import SourceWatch
from fedmr_merge.checkpoint.hashing import Digests, hash_tensors
from fedmr_merge.checkpoint.matching import tensor_differences
from fedmr_merge.checkpoint.open import Checkpoint, open_checkpoint
from fedmr_merge.checkpoint.writer import Progress
from fedmr_merge.errors import FedmrMergeError, VerificationError
from fedmr_merge.hub.inputs import open_inputs
from fedmr_merge.lineage.model import AVERAGE, Lineage
from fedmr_merge.lineage.parents import hash_file
from fedmr_merge.lineage.reader import read_lineage
from fedmr_merge.lineage.writer import record_hashes, remove_leftovers
from fedmr_merge.recombination.verification import Verification
from fedmr_merge.recombination.verify_mean import check_average, check_global, shown_difference

Inputs = Sequence[str | Path | Checkpoint]

_CONSERVED = "the outputs hold the inputs' tensors, each byte for byte"


def verify(out: str | Path, against: Inputs | None = None, *, progress: Progress | None = None) -> Verification:
    """Verify the output folder of a recombination or an average.

    What was not hashed when it was written is hashed now, and where it is what the inputs say, its hashes are written
    into its lineage: from then on it can be verified without them.

    Args:
        out: the folder that was written.
        against: the inputs, in the order of their slots; if None, those that the lineage names, where they are still
            there.
        progress: called with the number of bytes just read, from several threads.

    Returns:
        A report: what was proved, all faults, what could not be checked and why, and what has changed since.

    Raises:
        VerificationError: there is no lineage, it is damaged, or `against` does not name one input for each slot.
        CheckpointError: an input that `against` names, or on which the proof depends, cannot be read.
        HubError: such an input is on the Hub, which refused or could not be reached.

    Examples:
        >>> from fedmr_merge import verify
        >>> report = verify("recombined")
        >>> report.ok, report.faults
        (True, [])
    """
    lineage = read_lineage(out)
    if against is not None:
        against = _open_named(lineage, against, progress)
    remove_leftovers(lineage.folder)
    report = Verification()
    if lineage.operation == AVERAGE:
        places = against or _places(lineage)
        hashes = check_average(lineage, places, () if against else _missing(lineage), report, progress)
        if hashes is not None:
            _record(lineage, {}, hashes, report)
        return report
    models = _open_outputs(lineage, report)
    digests = {slot: _hash(model, progress) for slot, model in models.items()}
    report.tensors, report.nbytes = sum(map(len, digests.values())), sum(model.nbytes for model in models.values())
    _check_tensors(lineage, models, digests, report)
    _check_plan(lineage, report)
    _check_sidecars(lineage, models, report)
    inputs = _check_conservation(lineage, digests, against, report, progress)
    if lineage.mean is not None:
        check_global(lineage, models, inputs, report, progress)
    if report.ok and not lineage.hashed:
        if inputs:
            mean = None if lineage.mean is None else _hash(open_checkpoint(lineage.folder / lineage.mean["path"]))
            _record(lineage, digests, mean, report)
        else:
            report.nothing_vouches(lineage.folder, _missing(lineage)[0])
    return report


def _open_named(lineage: Lineage, against: Inputs, progress: Progress | None) -> tuple[Checkpoint, ...]:
    """Open the inputs that `against` names. Raises VerificationError, before any is fetched, where they are not one for
    each slot.
    """
    slots = len(lineage.parents)

    def check(inputs: Sequence[Checkpoint]) -> None:
        if len(inputs) != slots:
            count = "1 input was" if len(inputs) == 1 else f"{len(inputs)} inputs were"
            operation = "average" if lineage.operation == AVERAGE else "recombination"
            raise VerificationError(
                f"{count} given, the {operation} had {slots}",
                hint=f"name all {slots} with --against, in the order of their slots",
            )

    inputs = open_inputs(against, check, progress=progress)
    check(inputs)
    return inputs


def check_outputs(lineage: Lineage, progress: Progress | None = None) -> dict[int, Checkpoint]:
    """Return the outputs of a recombination, opened. Raises VerificationError when they are not what was written.

    Their bytes are read only where the lineage records what they were.
    """
    report = Verification()
    models = _open_outputs(lineage, report)
    is_recorded = any(origin.sha256 is not None for origin in lineage.tensors)
    digests = {slot: _hash(model, progress) for slot, model in models.items()} if is_recorded else {}
    _check_tensors(lineage, models, digests, report)
    _check_plan(lineage, report)
    if report.faults:
        raise VerificationError(
            f"{lineage.folder}: " + "; ".join(report.faults[:3]), hint="nothing was written", faults=report.faults
        )
    return models


def _open_outputs(lineage: Lineage, report: Verification) -> dict[int, Checkpoint]:
    models = {}
    for slot, path in lineage.outputs.items():
        try:
            models[slot] = open_checkpoint(lineage.folder / path)
        except FedmrMergeError as error:
            report.faults.append(str(error))
    return models


def _check_tensors(
    lineage: Lineage, models: Mapping[int, Checkpoint], digests: Mapping[int, Mapping[str, str]], report: Verification
) -> None:
    """Compare the tensors of the outputs, and the SHA-256 that they have on disk, with the lineage.

    `digests` may be empty where the lineage records none.
    """
    unlisted = {slot: set(model.tensors) for slot, model in models.items()}
    for slot, model in models.items():
        for difference in tensor_differences(slot, lineage.parents[slot].tensors, model.tensors):
            report.faults.append(shown_difference(lineage.outputs[slot], difference))
            unlisted[slot].discard(difference.subject)
    for slot, name, *_, expected in lineage.tensors:
        if slot not in models:
            continue
        unlisted[slot].discard(name)
        if expected is not None and name in models[slot].tensors and digests[slot][name] != expected:
            entry = models[slot].tensors[name]
            report.faults.append(
                f"{entry.file}: tensor {name!r} (bytes {entry.start} to {entry.end}) is not what was written"
            )
    for slot, names in unlisted.items():
        report.faults += [f"{lineage.outputs[slot]}: tensor {name!r} is not in the lineage" for name in sorted(names)]


def _check_sidecars(lineage: Lineage, models: Mapping[int, Checkpoint], report: Verification) -> None:
    """Compare configs, tokenizers … of the outputs with what they were: people may change them, and should know."""
    for slot, model in models.items():
        for name, sha256 in lineage.donor(slot).sidecars.items() if model.is_folder else ():
            place = model.path / name
            if name not in model.sidecars:
                report.warnings.append(f"{place} is missing")
            elif hash_file(place) != sha256:
                report.warnings.append(f"{place} has changed since it was written")


def _check_plan(lineage: Lineage, report: Verification) -> None:
    """Check that the lineage's entries say what its plan says, and use every (tensor, slot) of the inputs once."""
    used: dict[int, set[str]] = {slot: set() for slot in range(lineage.plan.slots)}
    doubled = None
    for origin in lineage.tensors:
        if lineage.plan.source(origin.group, origin.slot) != origin.source_slot:
            report.faults.append(f"lineage.json: slot {origin.slot}, {origin.tensor!r}: its source is not the plan's")
        if origin.tensor in used[origin.source_slot]:
            doubled = doubled or origin
        used[origin.source_slot].add(origin.tensor)
    if doubled:
        report.faults.append(f"lineage.json: {doubled.tensor!r} of source slot {doubled.source_slot} is used twice")
    elif len(lineage.outputs) == lineage.plan.slots:
        report.proved.append("every (tensor, slot) of the inputs is used once and only once")


def _check_conservation(
    lineage: Lineage,
    digests: Mapping[int, Mapping[str, str]],
    against: Inputs | None,
    report: Verification,
    progress: Progress | None,
) -> Sequence[Checkpoint]:
    """Compare the outputs with the inputs. Returns the inputs, where every tensor was compared and is right."""
    if lineage.hashed and report.ok:
        report.proved.append("every output tensor has the SHA-256 that was recorded")
    if against is None and (missing := _missing(lineage)):
        unproved = "" if lineage.hashed else "; nothing vouches for the bytes"
        report.skipped.append(f"comparison with the inputs: {missing[0]}{unproved}")
        return ()
    if against is None and lineage.hashed:
        return _unchanged(lineage, report, progress)
    inputs = open_inputs(against or _places(lineage), progress=progress)
    expected = [_hash(checkpoint, progress) for checkpoint in inputs]
    wrong = [
        origin
        for origin in lineage.tensors
        if digests.get(origin.slot, {}).get(origin.tensor) != expected[origin.source_slot].get(origin.tensor)
    ]
    for origin in wrong:
        report.faults.append(
            f"{lineage.outputs[origin.slot]}: tensor {origin.tensor!r} differs from its source, "
            f"{inputs[origin.source_slot].location}"
        )
    if not wrong and len(digests) == lineage.plan.slots:
        report.proved.append(_CONSERVED)
    return () if wrong else inputs


def _unchanged(lineage: Lineage, report: Verification, progress: Progress | None) -> Sequence[Checkpoint]:
    """Compare the inputs with what is recorded of them: they may still be in use, and then no output is to blame.

    Returns them where none has changed since.
    """
    inputs: dict[int, Checkpoint] = {}
    digests: dict[int, Digests] = {}
    changed: set[int] = set()
    for parent in lineage.parents:
        try:
            (checkpoint,) = open_inputs([parent.place(lineage.folder)], progress=progress)
            digests[parent.slot] = _hash(checkpoint, progress)
        except FedmrMergeError as error:
            report.warnings.append(f"a source could not be compared: {error}; the outputs hold what it was")
        else:
            inputs[parent.slot] = checkpoint
            if tensor_differences(parent.slot, parent.tensors, checkpoint.tensors):
                changed.add(parent.slot)
    for origin in lineage.tensors:
        slot = origin.source_slot
        if slot in inputs and slot not in changed and digests[slot][origin.tensor] != origin.sha256:
            changed.add(slot)
    for slot in sorted(changed):
        place = lineage.parents[slot].place(lineage.folder)
        report.warnings.append(f"source {place} has changed since; the outputs hold what it was")
    same = not changed and len(inputs) == len(lineage.parents)
    if same and report.ok and len(lineage.outputs) == lineage.plan.slots:
        report.proved.append(_CONSERVED)
    return tuple(inputs.values()) if same else ()


def _hash(checkpoint: Checkpoint, progress: Progress | None = None) -> Digests:
    return hash_tensors(checkpoint.tensors, SourceWatch([checkpoint]), progress)


def _places(lineage: Lineage) -> list[Path]:
    return [parent.place(lineage.folder) for parent in lineage.parents]


def _missing(lineage: Lineage) -> list[str]:
    """Return a sentence on each input that is not where it should be."""
    return [
        f"{parent.path} is not in this machine's cache of the Hub; it is fetched where `--against` names all inputs"
        if parent.hub is not None
        else f"{parent.place(lineage.folder)} is not there"
        for parent in lineage.parents
        if not parent.is_there(lineage.folder)
    ]


def _record(
    lineage: Lineage, digests: Mapping[int, Mapping[str, str]], mean: Mapping[str, str] | None, report: Verification
) -> None:
    """Record what was compared with the inputs, so that the outputs can be verified when those are gone."""
    try:
        record_hashes(lineage, digests, mean)
    except OSError as error:
        report.skipped.append(f"recording the SHA-256 of the tensors: lineage.json cannot be written: {error.strerror}")
    else:
        report.proved.append("their SHA-256 is recorded now: from here on they can be verified without the inputs")
