"""Undo a recombination: write its inputs again, byte for byte, from its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmr_merge.checkpoint.copying import Segment, SourceWatch, assemble, copy_file
from fedmr_merge.checkpoint.folder import leads_out, without_index
from fedmr_merge.checkpoint.header import unpack
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.checkpoint.writer import Progress, refuse_existing, refuse_without_space, staged_output
from fedmr_merge.errors import OutputError, VerificationError
from fedmr_merge.hub.inputs import lies_in
from fedmr_merge.lineage.model import AVERAGE
from fedmr_merge.lineage.parents import Parent, hash_file
from fedmr_merge.lineage.reader import read_lineage
from fedmr_merge.recombination.originals import original_entries
from fedmr_merge.recombination.verify import check_outputs


@dataclass(frozen=True)
class Rebuilt:
    """What `undo` wrote."""

    paths: list[Path]  #: the models, slot by slot
    missing: list[Path]  #: configs, tokenizers … that no output still holds as they were
    proved: bool  #: whether the SHA-256 of every output tensor was recorded, and is still what it was


def undo(out: str | Path, target: str | Path, *, progress: Progress | None = None) -> Rebuilt:
    """Rebuild the inputs of a recombination from its outputs, byte for byte.

    Args:
        out: the output folder of a recombination of which every slot was written.
        target: the folder to write the inputs to, which must not exist.
        progress: called with the number of bytes just read or written, from several threads.

    Returns:
        The rebuilt models, slot by slot; the configs and tokenizers that no output still holds as they were; and
        whether the bytes are proved to be those that were written, which takes recorded hashes.

    Raises:
        VerificationError: there is no lineage, it is damaged, not every slot was written, or an output is not what
            was written.
        OutputError: `target` exists, is inside `out`, cannot be written, or does not fit on the disk.

    Examples:
        >>> from fedmr_merge import undo
        >>> [path.name for path in undo("recombined", "inputs").paths]
        ['a.safetensors', 'b.safetensors', 'c.safetensors']
    """
    target = Path(target)
    refuse_existing(target)
    lineage = read_lineage(out)
    if lies_in(target, lineage.folder):
        raise OutputError(
            target, f"lies in the output that is read, {lineage.folder}", hint="choose another place with -o"
        )
    if lineage.operation == AVERAGE:
        raise VerificationError(
            f"{lineage.folder}: it is an average, and the models cannot be rebuilt from their mean",
            hint="name the folder that `fedmr-merge recombine` wrote",
        )
    if len(lineage.outputs) < lineage.plan.slots:
        raise VerificationError(
            f"{lineage.folder}: only some slots were written; undo needs all {lineage.plan.slots}",
            hint="leave out --slots",
        )
    refuse_without_space(target, sum(file.header.file_bytes for parent in lineage.parents for file in parent.files))
    models = check_outputs(lineage, progress)
    names = _names(lineage.parents)
    watch = SourceWatch(models.values())
    entries = original_entries(lineage, models)
    with staged_output(target) as staging:
        staging.mkdir()
        missing: list[Path] = []
        for parent, name in zip(lineage.parents, names, strict=True):
            _restore_weights(parent, staging / name, entries[parent.slot], watch, progress)
            donors = [models[parent.slot], *models.values()]  # its own output first
            lost = _restore_sidecars(parent.sidecars, donors, staging / name)
            missing += [target / name / sidecar for sidecar in lost]
        watch.check()
    return Rebuilt([target / name for name in names], missing, lineage.hashed)


def _restore_sidecars(sidecars: Mapping[str, str], donors: Sequence[Checkpoint], path: Path) -> list[str]:
    """Write the sidecars that an output still holds as they were. Returns those that no output does."""
    lost = []
    for name, sha256 in sidecars.items():
        places = (donor.path / name for donor in donors if name in donor.sidecars)
        place = next((place for place in places if hash_file(place) == sha256), None)
        if place is None:
            lost.append(name)
        else:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(place, path / name, SourceWatch([]))
    return lost


def _restore_weights(
    parent: Parent,
    path: Path,
    entries: Mapping[str, TensorEntry],
    watch: SourceWatch,
    progress: Progress | None,
) -> None:
    for file in parent.files:
        place = path / file.name if parent.is_folder else path
        place.parent.mkdir(parents=True, exist_ok=True)
        tensors = (entries[file.prefix + name] for name in file.header.tensors)
        assemble(place, file.header.raw, (Segment(e.file, e.start, e.end) for e in tensors), watch, progress)
    for name, packed in parent.indexes.items():
        (path / name).write_bytes(unpack(packed))


def _names(parents: Sequence[Parent]) -> list[str]:
    """Return the names of the rebuilt inputs: as they were, or by their slot where two had the same name."""
    names = [without_index(Path(parent.path).name) if parent.hub is None else "" for parent in parents]
    if len(set(names)) == len(names) and not any(map(leads_out, names)):
        return names
    return [f"slot-{parent.slot:02d}" + ("" if parent.is_folder else ".safetensors") for parent in parents]
