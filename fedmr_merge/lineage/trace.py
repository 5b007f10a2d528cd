"""Trace a tensor back, through one recombination after the other."""

from __future__ import annotations

import difflib
import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fedmr_merge.checkpoint.folder import is_index
from fedmr_merge.errors import VerificationError
from fedmr_merge.lineage.model import AVERAGE, LINEAGE_FILE, Lineage, TensorOrigin
from fedmr_merge.lineage.reader import read_lineage


class TracedOrigin(NamedTuple):
    """Where a tensor came from, with the place of the parent's file."""

    origin: TensorOrigin
    place: str  #: a path, from where the lineage was opened, or `org/name@commit/…` on the Hub
    ends: str | None = None  #: why the trace ends here, though that place is the output of an earlier operation


def trace(out: str | Path, tensor: str, slot: int | None = None) -> list[list[TracedOrigin]]:
    """Trace a tensor back through every recombination in a row whose lineage is still there.

    Args:
        out: the output folder of a recombination.
        tensor: the name of a tensor of its models.
        slot: the output slot whose tensor is traced; every slot that was written if None.

    Returns:
        One chain for every output slot: the first link says where the output's tensor came from, the second where that
        one came from, and so on. `ends` of the last link says why a trace ends at the output of an earlier operation,
        for example because that is a mean.

    Raises:
        VerificationError: there is no lineage, it is damaged, or it has no such tensor or slot.

    Examples:
        >>> for chain in trace("recombined", "fc.weight"):
        ...     print(chain[0].origin.slot, "<-", *(link.place for link in chain))
    """
    lineage = read_lineage(out)
    where = lineage.folder / LINEAGE_FILE
    if lineage.operation == AVERAGE:
        raise VerificationError(
            f"{where}: every tensor of an average comes from all of its {len(lineage.parents)} models",
            hint="name the folder that `fedmr-merge recombine` wrote",
        )
    starts = [origin for origin in lineage.tensors if origin.tensor == tensor]
    if not starts:
        near = difflib.get_close_matches(tensor, {origin.tensor for origin in lineage.tensors}, n=1)
        raise VerificationError(
            f"{where}: there is no tensor {tensor!r:.200}" + (f", did you mean {near[0]!r}?" if near else ""),
            hint="`fedmr-merge rules explain CKPT` lists the tensors of a model",
        )
    if slot is not None and slot not in lineage.outputs:
        raise VerificationError(
            f"{where}: there is no slot {slot}", hint=f"its slots are {', '.join(map(str, lineage.outputs))}"
        )
    return [_follow(lineage, start) for start in starts if slot in (None, start.slot)]


def _follow(lineage: Lineage, origin: TensorOrigin) -> list[TracedOrigin]:
    chain = [_link(lineage, origin)]
    seen = {lineage.folder.resolve()}
    while True:
        parent = lineage.parents[chain[-1].origin.source_slot]
        if parent.hub is not None:
            return chain
        place = parent.place(lineage.folder).resolve()
        # A model that is a folder may have been named by the weight file in it.
        around = (p for p in (place, *place.parents[:2]) if p not in seen)
        folder = next((p for p in around if os.access(p / LINEAGE_FILE, os.F_OK)), None)
        if folder is None:
            return chain
        seen.add(folder)
        try:
            lineage = read_lineage(folder)
        except VerificationError as error:
            return [*chain[:-1], chain[-1]._replace(ends=str(error))]
        name = next(iter(place.relative_to(folder).parts), None)
        if lineage.operation == AVERAGE or (lineage.mean and PurePosixPath(lineage.mean["path"]).parts[0] == name):
            why = f"it is the mean of the {len(lineage.parents)} models that {folder / LINEAGE_FILE} names"
            return [*chain[:-1], chain[-1]._replace(ends=why)]
        slot = next((slot for slot, path in lineage.outputs.items() if path == name), None)
        before = next((o for o in lineage.tensors if o.slot == slot and o.tensor == origin.tensor), None)
        if before is None:
            return chain
        chain.append(_link(lineage, before))


def _link(lineage: Lineage, origin: TensorOrigin) -> TracedOrigin:
    parent = lineage.parents[origin.source_slot]
    place = parent.path if parent.hub is not None else str(parent.place(lineage.folder))
    folder = place[: -len(PurePosixPath(place).name) - 1] if is_index(place) else place
    return TracedOrigin(origin, f"{folder}/{origin.source_file}" if parent.is_folder else place)
