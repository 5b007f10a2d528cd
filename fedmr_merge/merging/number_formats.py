"""Bytes of a safetensors dtype ↔ numpy numbers to calculate with.

numpy has no bfloat16 and no 8-bit floats, and importing torch to read them would cost more than most merges. A
bfloat16 is the upper half of a float32; an 8-bit float is looked up in a table of its 256 values. Numbers are rounded
to the nearest, ties to even, as torch rounds them, but always once: torch rounds float64 to float32 on the way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8"}
#: Exponent bits, mantissa bits, bias, whether the all-ones exponent means infinity and NaN as in IEEE 754, and whether
#: -0 is the only NaN.
_FLOAT8 = {
    "F8_E4M3": (4, 3, 7, False, False),
    "F8_E5M2": (5, 2, 15, True, False),
    "F8_E4M3FNUZ": (4, 3, 8, False, True),
    "F8_E5M2FNUZ": (5, 2, 16, False, True),
}

#: The largest number that is rounded to the largest of a dtype, for dtypes in which larger numbers become that as well.
LARGEST = {"F8_E4M3": 464.0}


class Buffers:
    """Memory by purpose, allocated once and used again for every piece. Belongs to one thread."""

    def __init__(self) -> None:
        self._held: dict[str, Array] = {}

    def take(self, purpose: str, dtype: np.dtype[Any], count: int) -> Array:
        """Return `count` numbers of undefined value, good until the same purpose is asked for again."""
        nbytes = count * dtype.itemsize
        held = self._held.get(purpose)
        if held is None or held.nbytes < nbytes:
            held = self._held[purpose] = np.empty(nbytes, np.uint8)
        return held[:nbytes].view(dtype)


def accumulator(dtype: str, double: bool) -> np.dtype[Any]:
    """Return what the mean of this dtype is added up in: float32, or float64 for float64 and on request.

    Complex numbers are added up in the complex dtype of twice that width.
    """
    if dtype == "C64":
        return np.dtype(np.complex128 if double else np.complex64)
    return np.dtype(np.float64 if double or dtype == "F64" else np.float32)


def decode(raw: Array, dtype: str, out: Array) -> None:
    """Write the numbers that the bytes `raw` (uint8) stand for into `out`."""
    if dtype in _NUMPY:
        np.copyto(out, raw.view(_NUMPY[dtype]))
    elif dtype != "BF16":
        np.take(_float8_values(dtype, out.dtype), raw, out=out, mode="clip")  # other modes copy through a buffer
    elif out.dtype == np.float32:
        bits = out.view(np.uint32)
        np.copyto(bits, raw.view("<u2"))
        np.left_shift(bits, 16, out=bits)
    else:
        np.copyto(out, (raw.view("<u2").astype(np.uint32) << 16).view(np.float32))


def encode(numbers: Array, dtype: str, buffers: Buffers | None = None) -> Array:
    """Return the bytes (uint8) of numbers in a dtype, rounded to nearest, ties to even.

    The bytes lie in the buffers, or are those of `numbers` where nothing has to be converted.
    """
    buffers = buffers or Buffers()
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype in _NUMPY:
            return _cast(numbers, np.dtype(_NUMPY[dtype]), buffers).view(np.uint8)
        singles = _cast(numbers, np.dtype(np.float32), buffers)
        if numbers.dtype == np.float64:
            _round_to_odd(singles, numbers)
    if dtype == "BF16":
        return _to_bfloat16(singles, buffers).view(np.uint8)
    return _to_float8(singles, dtype)


def _cast(numbers: Array, dtype: np.dtype[Any], buffers: Buffers) -> Array:
    if numbers.dtype == dtype and numbers.flags.c_contiguous:
        return numbers
    out = buffers.take("cast", dtype, numbers.size)
    np.copyto(out, numbers, casting="same_kind")
    return out


def _round_to_odd(singles: Array, doubles: Array) -> None:
    """Turn `doubles` rounded to float32 into `doubles` cut off to float32, with the last bit set if bits were cut off.

    No such number lies halfway between two numbers of a shorter format, so that rounding it again rounds once.
    """
    bits = singles.view(np.uint32)
    bits -= np.abs(singles) > np.abs(doubles)  # infinity becomes the largest number
    bits |= singles != doubles


def _to_bfloat16(singles: Array, buffers: Buffers) -> Array:
    bits = singles.view(np.uint32)
    rounded = buffers.take("rounded", bits.dtype, bits.size)
    # Half of the lowest kept bit, less one where that bit is even: the carry rounds to nearest, ties to even.
    np.right_shift(bits, 16, out=rounded)
    np.bitwise_and(rounded, 1, out=rounded)
    np.add(rounded, 0x7FFF, out=rounded)
    np.add(rounded, bits, out=rounded)
    np.right_shift(rounded, 16, out=rounded)
    halves = buffers.take("halves", np.dtype("<u2"), bits.size)
    np.copyto(halves, rounded, casting="unsafe")
    if singles.size and np.isnan(singles.max()):
        halves[np.isnan(singles)] = 0x7FC0  # the carry could turn a NaN into infinity
    return halves


@cache
def _float8_values(dtype: str, kind: np.dtype[Any]) -> Array:
    """Return the number, as a `kind`, that each of the 256 codes stands for."""
    exponent_bits, mantissa_bits, bias, ieee, unsigned_zero = _FLOAT8[dtype]
    codes = np.arange(256)
    sign = np.where(codes >> 7, -1.0, 1.0)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    normal = np.ldexp(1 + mantissa, exponent - bias)
    values = sign * np.where(exponent == 0, np.ldexp(mantissa, 1 - bias), normal)
    top = exponent == (1 << exponent_bits) - 1
    if ieee:
        values = np.where(top, np.where(mantissa == 0, sign * np.inf, np.nan), values)
    elif unsigned_zero:
        values[0x80] = np.nan
    else:
        values[[0x7F, 0xFF]] = np.nan
    numbers: Array = values.astype(kind)
    return numbers


def _to_float8(singles: Array, dtype: str) -> Array:
    values = _float8_values(dtype, singles.dtype)
    finite = values[:128][np.isfinite(values[:128])].astype(np.float64)  # ascending: the codes of the magnitudes
    middles = (finite[1:] + finite[:-1]) / 2
    magnitude = np.abs(singles).astype(np.float64)
    lower = np.searchsorted(middles, magnitude, side="left")
    tie = (lower < len(middles)) & (magnitude == middles[np.minimum(lower, len(middles) - 1)])
    codes: Array = (lower + (tie & (lower % 2 == 1))).astype(np.uint8)
    not_a_number = np.flatnonzero(np.isnan(values))[0]
    if dtype != "F8_E4M3":  # that one stays at its largest number, as in torch
        infinity = np.flatnonzero(np.isposinf(values))
        too_large = magnitude >= finite[-1] + (finite[-1] - finite[-2]) / 2
        codes[too_large] = infinity[0] if infinity.size else not_a_number
    negative = np.signbit(singles)
    if np.isnan(values[0x80]):
        negative &= codes > 0  # no negative zero there
    codes |= negative.astype(np.uint8) << 7
    codes[np.isnan(singles)] = not_a_number
    return codes
