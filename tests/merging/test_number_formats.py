"""Bytes to numbers and back, bit for bit as torch does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmr_merge.merging.number_formats import decode, encode

SMALL = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}


def singles_of(raw: np.ndarray, dtype: str) -> np.ndarray:
    out = np.empty(len(raw) // (1 if dtype in SMALL else 2), np.float32)
    decode(raw, dtype, out)
    return out


def same_numbers(found: np.ndarray, expected: torch.Tensor) -> None:
    other = expected.float().numpy()
    np.testing.assert_array_equal(found, other)  # NaN equals NaN
    np.testing.assert_array_equal(np.signbit(found[~np.isnan(found)]), np.signbit(other[~np.isnan(other)]))


@pytest.mark.parametrize("dtype", SMALL)
def test_every_code_of_an_8_bit_float(dtype: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    same_numbers(singles_of(codes, dtype), torch.from_numpy(codes).view(SMALL[dtype]))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_code_of_a_16_bit_float(dtype: str) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    same_numbers(singles_of(codes.view(np.uint8), dtype), torch.from_numpy(codes.view(np.int16)).view(HALVES[dtype]))


def near(values: np.ndarray) -> np.ndarray:
    """The values, the middles between neighbours, and the floats next to each of these: every tie of the rounding."""
    ascending = np.unique(values[np.isfinite(values)].astype(np.float64))
    middles = (ascending[1:] + ascending[:-1]) / 2
    beyond = [
        ascending[-1] * 1.03,
        ascending[-1] * 1.07,
        ascending[-1] * 1.13,
        ascending[-1] * 2,
        3e38,
        1e-45,
        1e-30,
        0.0,
    ]
    with np.errstate(over="ignore"):  # beyond what float32 holds lies infinity
        points = np.concatenate([ascending, middles, beyond, np.negative(beyond)]).astype(np.float32)
    around = [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))]
    return np.concatenate([*around, np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0], np.float32)])


@pytest.mark.parametrize("dtype", [*SMALL, *HALVES])
def test_every_tie_rounds_as_torch_rounds(dtype: str) -> None:
    torch_dtype = SMALL.get(dtype) or HALVES[dtype]
    count, kind = (256, np.uint8) if dtype in SMALL else (1 << 16, np.uint16)
    points = near(singles_of(np.arange(count, dtype=kind).view(np.uint8), dtype))
    expected = torch.from_numpy(points).to(torch_dtype)
    found = encode(points.copy(), dtype)
    same_numbers(singles_of(found, dtype), expected)


@pytest.mark.parametrize("dtype", [*SMALL, *HALVES])
def test_random_floats_give_torch_s_bytes(dtype: str) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 200_000, np.uint32)
    numbers = bits.view(np.float32)
    numbers = numbers[~np.isnan(numbers)]
    torch_dtype = SMALL.get(dtype) or HALVES[dtype]
    expected = torch.from_numpy(numbers).to(torch_dtype).view(torch.uint8).numpy()
    np.testing.assert_array_equal(encode(numbers, dtype), expected)


@pytest.mark.parametrize("dtype", [*SMALL, *HALVES])
def test_codes_survive(dtype: str) -> None:
    count, kind = (256, np.uint8) if dtype in SMALL else (1 << 16, np.uint16)
    codes = np.arange(count, dtype=kind)
    numbers = singles_of(codes.view(np.uint8), dtype)
    again = encode(numbers, dtype).view(kind)
    np.testing.assert_array_equal(again[~np.isnan(numbers)], codes[~np.isnan(numbers)])


@pytest.mark.parametrize("dtype", [*SMALL, *HALVES])
def test_doubles_are_rounded_once(dtype: str) -> None:
    """Next to the middle of two numbers to the nearer one, though the middle is what is nearest in float32."""
    random = np.random.default_rng(1).standard_normal(10_000)
    torch_dtype = SMALL.get(dtype) or HALVES[dtype]
    expected = torch.from_numpy(random).to(torch_dtype).view(torch.uint8).numpy()
    np.testing.assert_array_equal(encode(random, dtype), expected)
    count, kind = (128, np.uint8) if dtype in SMALL else (1 << 15, np.uint16)
    numbers = singles_of(np.arange(count, dtype=kind).view(np.uint8), dtype)
    numbers = numbers[np.isfinite(numbers)].astype(np.float64)
    middles = (numbers[1:] + numbers[:-1]) / 2
    assert np.array_equal(middles.astype(np.float32), middles)
    for sign in (1, -1):
        for towards in (np.inf, 0):
            beside = sign * np.nextafter(middles, towards)
            nearest = sign * (numbers[1:] if towards else numbers[:-1])
            np.testing.assert_array_equal(singles_of(encode(beside, dtype), dtype), nearest)
    beyond = np.array([1e300, -1e300, np.inf, -np.inf, np.nan, 0.0, 5e-324])
    same_numbers(singles_of(encode(beyond, dtype), dtype), torch.from_numpy(beyond).to(torch_dtype))


def test_bfloat16_into_doubles() -> None:
    out = np.empty(3)
    decode(torch.tensor([1.5, -2, 3], dtype=torch.bfloat16).view(torch.uint8).numpy(), "BF16", out)
    assert out.tolist() == [1.5, -2, 3]
