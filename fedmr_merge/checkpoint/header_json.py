"""The JSON of a safetensors header: parse it and check every value."""

from __future__ import annotations

import json
import reprlib
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from fedmr_merge.checkpoint.tensor_table import Signature

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_MAX_INTEGER = (1 << 64) - 1


#: More lists and objects than the longest valid header has: a tensor's entry takes three of them and 49 bytes at least.
_MAX_CONTAINERS = 6_500_000


class RawEntry(NamedTuple):
    """An object with just the keys that describe a tensor; its values are not checked yet."""

    dtype: Any
    shape: Any
    data_offsets: Any


def members(content: bytes, fail: Callable[[str], NoReturn]) -> list[tuple[str, Any]]:
    """Return the members of a header's JSON object, of which none has the name of another.

    A value that is an object comes as a `RawEntry` if it has the keys of one, else as a tuple of pairs.
    """

    def no_constant(word: str) -> NoReturn:
        fail(f"the header holds {word}, which is not JSON")

    def integer(digits: str) -> int:
        if digits.startswith("-"):
            fail(f"the header holds a negative number, {reprlib.repr(digits)}")
        return int(digits)

    if content.count(b"[") + content.count(b"{") > _MAX_CONTAINERS:
        fail("the header holds more lists and objects than any valid one")
    parse_int = integer if b"-" in content else None  # a hook per number costs as much as all the rest
    try:
        text = content.decode("utf-8")
        found = json.loads(text, object_pairs_hook=_read_object, parse_constant=no_constant, parse_int=parse_int)
    except UnicodeDecodeError:
        fail("the header is not valid UTF-8")
    except (ValueError, RecursionError) as error:
        fail(f"the header is not valid JSON: {error}")
    if isinstance(found, RawEntry):
        fail("the header describes a tensor without a name")
    if not isinstance(found, tuple):
        fail(f"the header is not a JSON object: {reprlib.repr(found)}")
    if (twice := _named_twice(found)) is not None:
        fail(f"the header names {reprlib.repr(twice)} twice")
    if b"\\" in content:
        _refuse_surrogates(found, fail)
    return list(found)


def _read_object(pairs: list[tuple[str, Any]]) -> RawEntry | tuple[tuple[str, Any], ...]:
    fields = dict(pairs)
    return RawEntry(**fields) if len(pairs) == 3 and fields.keys() == _ENTRY_KEYS else tuple(pairs)


def _named_twice(pairs: Sequence[tuple[str, Any]]) -> str | None:
    if len(dict(pairs)) == len(pairs):
        return None
    return Counter(name for name, _ in pairs).most_common(1)[0][0]


def _refuse_surrogates(pairs: Sequence[tuple[str, Any]], fail: Callable[[str], NoReturn]) -> None:
    """Refuse an escaped surrogate without its partner, which is not a character, in a name or in the metadata."""
    try:
        for name, value in pairs:
            json.dumps(name if isinstance(value, RawEntry) else (name, value), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        fail("the header is not valid UTF-8")


def read_metadata(value: Any, fail: Callable[[str], NoReturn]) -> dict[str, str]:
    """Return the metadata, a map of strings; empty for null."""
    if value is None:
        return {}
    if not _are_pairs(value) or not all(isinstance(text, str) for _, text in value):
        fail("__metadata__ must map strings to strings")
    if (twice := _named_twice(value)) is not None:
        fail(f"__metadata__ names {reprlib.repr(twice)} twice")
    return dict(value)


def read_entry(name: str, value: Any, fail: Callable[[str], NoReturn]) -> tuple[Signature, int, int]:
    """Return what a tensor is, and its first byte and its end, counted from the end of the header."""
    if not isinstance(value, RawEntry):
        if not _are_pairs(value):
            fail(f"tensor {name!r}: its entry is not an object")
        fail(
            f"tensor {name!r}: its entry must have dtype, shape and data_offsets, "
            f"found {reprlib.repr(sorted(key for key, _ in value))}"
        )
    dtype, shape, offsets = value
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        fail(f"tensor {name!r}: unknown dtype {reprlib.repr(dtype)}")
    if not _are_sizes(shape):
        fail(f"tensor {name!r}: its shape must be a list of non-negative integers, found {reprlib.repr(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        fail(f"tensor {name!r}: data_offsets must be two non-negative integers, found {reprlib.repr(offsets)}")
    try:
        signature, size = _sized(dtype, tuple(shape))
    except OverflowError:
        fail(f"tensor {name!r}: its shape has more elements than 64 bits can count")
    start, end = offsets
    if end - start != size:
        expected = "a whole number of bytes" if size is None else f"{size} bytes"
        fail(f"tensor {name!r}: {dtype} {reprlib.repr(shape)} takes {expected}, data_offsets give {end - start}")
    return signature, start, end


def _are_pairs(value: Any) -> bool:
    return isinstance(value, tuple) and not isinstance(value, RawEntry)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= _MAX_INTEGER for n in value)


@lru_cache(maxsize=4096)
def _sized(dtype: str, shape: tuple[int, ...]) -> tuple[Signature, int | None]:
    """Return the signature, one object for all tensors that share it, and its size in bytes; None if it is a fraction.

    Raises OverflowError. The sizes are multiplied one by one, as 64-bit readers do, so that none can overflow there.
    """
    bits = 1
    for size in (*shape, DTYPE_BITS[dtype]):
        bits *= size
        if bits > _MAX_INTEGER:
            raise OverflowError
    return Signature(dtype, shape), None if bits % 8 else bits // 8


def check_bounds(names: Sequence[str], starts: array[int], ends: array[int], data_bytes: int, fail: Any) -> None:
    """Check that the tensors follow each other without gap or overlap, from the first byte of the data to the last."""
    position = 0
    for name, start, end in zip(names, starts, ends, strict=True):
        if start != position:
            kind = "overlaps the tensor before it" if start < position else "leaves a gap before it"
            fail(f"tensor {name!r} {kind}: it starts at byte {start} of the data, expected {position}")
        position = end
    if position > data_bytes:
        fail(
            f"truncated: the tensors end at byte {position} of the data, the file has {data_bytes}",
            hint="fetch it again",
        )
    if position < data_bytes:
        fail(f"{data_bytes - position} bytes after the last tensor belong to no tensor")
