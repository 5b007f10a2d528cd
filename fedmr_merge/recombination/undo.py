"""Undo a recombination: its inputs, byte for byte, out of its outputs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmr_merge.checkpoint.copying import Segment, SourceWatch, assemble
from fedmr_merge.checkpoint.folder import leads_out, without_index
from fedmr_merge.checkpoint.header import unpack
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.checkpoint.writer import Progress, refuse_existing, staged_output
from fedmr_merge.errors import OutputError, VerificationError
from fedmr_merge.hub.inputs import lies_in
from fedmr_merge.lineage.parents import Parent, hash_file
from fedmr_merge.lineage.reader import read_lineage
from fedmr_merge.recombination.verify import check_outputs, original_entries


@dataclass(frozen=True)
class Rebuilt:
    """What `undo` wrote."""

    paths: list[Path]  #: the models, slot by slot
    missing: list[Path]  #: configs, tokenizers … that no output holds as they were
    proved: bool  #: whether the SHA-256 of every output tensor was recorded, and is still what it was


def undo(out: str | Path, target: str | Path, *, progress: Progress | None = None) -> Rebuilt:
    """Rebuild the inputs of a recombination from its outputs, byte for byte, in the folder `target`.

    What was not hashed when it was written is compared with nothing: `proved` tells. Raises VerificationError when an
    output is missing or is not what was written, OutputError when `target` exists, lies in `out` or cannot be written.
    """
    target = Path(target)
    refuse_existing(target)
    lineage = read_lineage(out)
    if lies_in(target, lineage.folder):
        raise OutputError(
            target, f"lies in the output that is read, {lineage.folder}", hint="choose another place with -o"
        )
    if len(lineage.outputs) < lineage.plan.slots:
        raise VerificationError(
            f"{lineage.folder}: only some slots were written; undo needs all {lineage.plan.slots}",
            hint="leave out --slots",
        )
    models = check_outputs(lineage, progress)
    names = _source_names(lineage.parents)
    watch = SourceWatch(models.values())
    entries = original_entries(lineage, models)
    with staged_output(target) as staging:
        staging.mkdir()
        missing: list[Path] = []
        for source, name in zip(lineage.parents, names, strict=True):
            _restore_weights(source, staging / name, entries[source.slot], watch, progress)
            donors = [models[source.slot], *models.values()]  # its own output first
            lost = _restore_sidecars(source.sidecars, donors, staging / name)
            missing += [target / name / sidecar for sidecar in lost]
        watch.check()
    return Rebuilt([target / name for name in names], missing, lineage.hashed)


def _restore_sidecars(sidecars: Mapping[str, str], donors: Sequence[Checkpoint], path: Path) -> list[str]:
    """Write the sidecars that an output holds as they were. Returns those that none does."""
    lost = []
    for name, sha256 in sidecars.items():
        places = (donor.path / name for donor in donors if name in donor.sidecars)
        place = next((place for place in places if hash_file(place) == sha256), None)
        if place is None:
            lost.append(name)
        else:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place, path / name)
    return lost


def _restore_weights(
    source: Parent,
    path: Path,
    entries: Mapping[str, TensorEntry],
    watch: SourceWatch,
    progress: Progress | None,
) -> None:
    for file in source.files:
        place = path / file.name if source.is_folder else path
        place.parent.mkdir(parents=True, exist_ok=True)
        tensors = (entries[file.prefix + name] for name in file.header.tensors)
        assemble(place, file.header.raw, (Segment(e.file, e.start, e.end) for e in tensors), watch, progress)
    for name, packed in source.indexes.items():
        (path / name).write_bytes(unpack(packed))


def _source_names(sources: Sequence[Parent]) -> list[str]:
    """What the rebuilt inputs are called: as they were, or by their slot where two had one name."""
    names = [without_index(Path(source.path).name) if source.hub is None else "" for source in sources]
    if len(set(names)) == len(names) and not any(map(leads_out, names)):
        return names
    return [f"slot-{source.slot:02d}" + ("" if source.is_folder else ".safetensors") for source in sources]
