"""Checks of what a lineage says: names, slots, tensors and the mean fit together. A fault is a ValueError."""

from __future__ import annotations

import math
from typing import Any

from fedmr_merge.checkpoint.folder import leads_out
from fedmr_merge.checkpoint.header_json import DTYPE_BITS
from fedmr_merge.checkpoint.matching import tensor_differences
from fedmr_merge.lineage.model import AVERAGE, HERE, Lineage

_LONGEST_NAME_BYTES = 255  #: of a file or folder, on the usual file systems


def check_lineage(lineage: Lineage) -> None:
    """Raise ValueError where a lineage could not be written so; LookupError or TypeError where a part is missing."""
    for check in (_check_names, _check_slots, _check_tensors, _check_mean):
        check(lineage)


def whole_number(value: Any) -> int:
    """Return a whole number of a lineage. Raises ValueError for anything else."""
    if type(value) is not int:
        raise ValueError(f"{value!r:.40} is not a whole number")
    return value


def _check_names(lineage: Lineage) -> None:
    """Raise ValueError where a name leads out of its folder, or is one that no file can have."""
    names = list(lineage.outputs.values())
    for parent in lineage.parents:
        names += [*parent.indexes, *parent.sidecars, *(file.name for file in parent.files)]
    for name in names:
        if leads_out(name):
            raise ValueError(f"the name {name!r:.80} leads out of its folder")
    for name in (*names, *(parent.path for parent in lineage.parents)):
        check_file_name(name)


def check_file_name(name: str) -> None:
    """Raise ValueError for a path that no file can have."""
    try:
        parts = name.encode().split(b"/")
    except UnicodeEncodeError as error:
        raise ValueError(f"the name {name!r:.80} is not Unicode") from error
    if "\0" in name:
        raise ValueError(f"the name {name!r:.80} holds a NUL")
    if any(len(part) > _LONGEST_NAME_BYTES for part in parts):
        raise ValueError(f"the name {name!r:.60} … is longer than {_LONGEST_NAME_BYTES} bytes")


def _check_slots(lineage: Lineage) -> None:
    if [parent.slot for parent in lineage.parents] != list(range(lineage.plan.slots)):
        raise ValueError("its sources are not one for each slot")
    shared = lineage.facts.get("sidecars_from")
    for slot in (*lineage.outputs, *(() if shared is None else (whole_number(shared),))):
        if slot not in range(lineage.plan.slots):
            raise ValueError(f"there is no slot {slot!r:.40}")


def _check_tensors(lineage: Lineage) -> None:
    """Raise ValueError where the parents have no tensors, or not the same, or an output's tensor is not one of them."""
    known = lineage.parents[0].tensors
    if not known:
        raise ValueError("its sources have no tensors")
    for parent in lineage.parents[1:]:
        if lineage.exact_adapters is not None and parent.tensors.keys() == known.keys():
            continue  # adapters of different ranks and dtypes have a mean
        for difference in tensor_differences(parent.slot, known, parent.tensors):
            raise ValueError(f"its sources differ: {difference}")
    for origin in lineage.tensors:
        if origin.tensor not in known:
            raise ValueError(f"{origin.tensor!r:.80} of slot {origin.slot} is in none of its sources")
        if origin.slot not in lineage.outputs or origin.group not in lineage.plan.permutations:
            raise ValueError(f"{origin.tensor!r:.80} of slot {origin.slot} is in no output or in no group of the plan")
        if origin.source_slot not in range(lineage.plan.slots):
            raise ValueError(f"{origin.tensor!r:.80} of slot {origin.slot} comes from slot {origin.source_slot}")


def _check_mean(lineage: Lineage) -> None:
    """Raise ValueError where the mean could not have been written so."""
    mean = lineage.mean
    if mean is None:
        return
    path, weights, dtype, hashes = mean["path"], mean.get("weights"), mean.get("out_dtype"), mean.get("sha256")
    is_here = lineage.operation == AVERAGE and path == HERE
    if not isinstance(path, str) or (leads_out(path) and not is_here):
        raise ValueError(f"the name {path!r:.40} of its mean leads out of its folder, or is not a name")
    check_file_name(path)
    if weights is not None:
        _check_weights(weights, lineage.plan.slots)
    if mean.get("accumulate") not in ("float32", "float64"):
        raise ValueError(f"its mean was added up in {mean.get('accumulate')!r:.40}")
    if dtype is not None and dtype not in DTYPE_BITS:
        raise ValueError(f"its mean was written in an unknown dtype, {dtype!r:.40}")
    _check_adapters(lineage)
    if hashes is not None and hashes.keys() != set(lineage.parents[0].tensors):
        raise ValueError("the SHA-256 of its mean are not those of the sources' tensors")


def _check_adapters(lineage: Lineage) -> None:
    found = lineage.exact_adapters
    if found is None:
        return
    rank, lost = found["rank"], found["lost"]
    if lineage.operation != AVERAGE or (rank is not None and not (type(rank) is int and rank > 0)):
        raise ValueError(f"an exact mean of adapters of rank {rank!r:.40} is not possible")
    if type(lost) not in (int, float) or not 0 <= lost <= 1:
        raise ValueError(f"{lost!r:.40} is not a share of a norm")
    if any(len(entry.shape) < 2 for name, entry in lineage.parents[0].tensors.items() if ".lora_" in name):
        raise ValueError("a factor of its adapters is not a matrix")


def _check_weights(weights: Any, slots: int) -> None:
    if not isinstance(weights, list) or not all(type(w) in (int, float) and 0 <= w < math.inf for w in weights):
        raise ValueError("the weights of its mean are not a list of numbers of 0 or more")
    if len(weights) != slots or not any(weights):
        raise ValueError(f"the weights of its mean are not {slots} numbers with one above 0")
