"""Recognise quantised weights: integers or 8-bit floats that are codes, and stand for numbers only with their scales.

They are recognised by their structure, since every quantisation has names of its own: a tensor of a dtype that codes
have, and beside it, in the same module, a smaller tensor that is named as its scale (`weight` and `scale_weight`,
`qweight` and `scales`), or shares its stem and its dimensions (`up_proj_blocks` and `up_proj_scales`), or, beside
packed integers, has a row or a column for each of theirs and fewer of the other, as blocks have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from fedmr_merge.checkpoint.tensor_table import TensorEntry

#: dtypes that are always codes: blocks of them share a scale, or they are packed below a byte.
ALWAYS_CODES = frozenset({"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"})
_CODES = frozenset({"U8", "I8", "U16", "I16", "U32", "I32", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
_SCALES = frozenset({"F16", "BF16", "F32", "F64", "U8", "F8_E8M0", "F8_E4M3"})
#: What every quantisation calls a scale in some spelling; bitsandbytes has `absmax` and `SCB`.
_SCALE = re.compile(r"scale|absmax|SCB")
_PACKED = frozenset({"U8", "I8", "U16", "I16", "U32", "I32"})
_MOST_OF_A_STEM = 8  #: scales that are looked at for one stem: names without structure must not cost a square of them


def find_scales(tensors: Mapping[str, TensorEntry]) -> Iterator[tuple[str, str]]:
    """Yield every tensor that holds codes, with the tensor that holds their scales."""
    codes = [name for name, entry in tensors.items() if entry.dtype in _CODES | ALWAYS_CODES and len(entry.shape) >= 2]
    if not codes:
        return
    named, by_stem = _index(tensors)
    for name in codes:
        module, leaf = _split(name)
        found = [scale for scale in named.get(module, ()) if scale != name and not _SCALE.search(leaf)]
        for stem in (name, *_stems(name)[:1]):
            found += [
                scale
                for scale in by_stem.get(stem, ())
                if scale != name and (_SCALE.search(_split(scale)[1]) or _fits(tensors[scale], tensors[name]))
            ]
        if not found and tensors[name].dtype in _PACKED:
            found = [other for other in by_stem.get(module, ()) if _is_of_blocks(tensors[other], tensors[name])]
        scale = next((s for s in found if tensors[s].parameters <= max(1, tensors[name].parameters)), None)
        if scale is not None:
            yield name, scale


def _index(tensors: Mapping[str, TensorEntry]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return module → its tensors that are named as scales, and stem → the tensors that could be scales of it."""
    named: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    for name, entry in tensors.items():
        if entry.dtype not in _SCALES:
            continue
        module, leaf = _split(name)
        places: Iterable[list[str]] = [by_stem.setdefault(stem, []) for stem in (*_stems(name), module)]
        if _SCALE.search(leaf):
            places = [*places, named.setdefault(module, [])]
        for place in places:
            if len(place) < _MOST_OF_A_STEM:
                place.append(name)
    return named, by_stem


def _split(name: str) -> tuple[str, str]:
    module, _, leaf = name.rpartition(".")
    return module, leaf


def _stems(name: str) -> list[str]:
    """Return what a name starts with, longest first: `a.up_proj`, `a.up` for `a.up_proj_scales`."""
    module, leaf = _split(name)
    parts = leaf.split("_")
    start = f"{module}." if module else ""
    return [start + "_".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def _fits(scale: TensorEntry, codes: TensorEntry) -> bool:
    """Whether a tensor has one number for each row, column or block of the codes."""
    if not scale.shape or scale.parameters >= codes.parameters or len(scale.shape) > len(codes.shape):
        return False
    return all(size and not of % size for size, of in zip(scale.shape, codes.shape, strict=False))


def _is_of_blocks(scale: TensorEntry, codes: TensorEntry) -> bool:
    """Whether a matrix of floats has one number for each block of packed integers: as many rows or columns as they."""
    if scale.dtype == "U8" or len(scale.shape) != len(codes.shape):
        return False
    alike = sum(one == other for one, other in zip(scale.shape, codes.shape, strict=True))
    return alike >= len(codes.shape) - 1 and 1 < scale.parameters < codes.parameters
