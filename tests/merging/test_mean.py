"""The streaming mean: against ten lines of numpy, and against the bytes that version 0.1.0 wrote."""

from __future__ import annotations

import hashlib
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_checkpoints import read, write

from fedmr_merge.checkpoint.header_json import DTYPE_BITS
from fedmr_merge.merging import options as mean_options
from fedmr_merge.merging.average import average
from fedmr_merge.merging.number_formats import accumulator, decode, encode
from fedmr_merge.merging.options import FLOATS, MeanOptions

Weights = tuple[float, ...] | None


def reference(raws: list[bytes], dtype: str, weights: Weights, double: bool) -> bytes:
    """The mean of whole tensors, without pieces, threads or reused memory."""
    kind = accumulator(dtype, double)
    total = np.zeros(0)
    for slot, raw in enumerate(raws):
        numbers = np.empty(8 * len(raw) // DTYPE_BITS[dtype], kind)
        decode(np.frombuffer(raw, np.uint8), dtype, numbers)
        term = numbers * kind.type(weights[slot] if weights else 1)
        total = total + term if slot else term
    total = total / kind.type(sum(weights) if weights else len(raws))
    return encode(total, dtype).tobytes()


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([dtype for dtype in FLOATS if dtype != "C64"]),
    st.integers(2, 4).flatmap(
        lambda slots: st.tuples(
            st.lists(st.lists(st.floats(-50, 50, width=32), min_size=9, max_size=9), min_size=slots, max_size=slots),
            st.none() | st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0]), min_size=slots, max_size=slots),
        )
    ),
    st.booleans(),
    st.integers(1, 10),
)
def test_pieces_and_threads_give_what_whole_tensors_give(
    dtype: str, models: tuple[list[list[float]], list[float] | None], double: bool, elements: int
) -> None:
    rows, weights = models
    raws = [encode(np.array(row), dtype).tobytes() for row in rows]
    chosen = tuple(weights) if weights else None
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(mean_options, "_PIECE_ELEMENTS", elements)
        paths = [write(Path(folder, f"{i}.safetensors"), {"w": (dtype, (9,), raw)}) for i, raw in enumerate(raws)]
        average(paths, Path(folder, "out.safetensors"), options=MeanOptions(chosen, double, threads=2))
        assert read(Path(folder, "out.safetensors"))["w"][2] == reference(raws, dtype, chosen, double)


#: SHA-256 of the file, by weights and whether the sum is taken in float64.
WRITTEN_BEFORE = {
    (None, False): "434d403306a04e0d35410c8dcb3e45620fd89c961f75170dd5672969bb5b2d0c",
    (None, True): "bbd8a87396f424c0284a33f4fae07ca67c58c57241201c0599cf97dbec293aee",
    ((0.5, 0.25, 2.0), False): "25e5cd6a3d67f94f8413bf056d20cd65ebf3cbf12397699d29de6f77a1a5a394",
    ((0.5, 0.25, 2.0), True): "e81c4c3b250f14785cad24c98f42bd57505b0c1cb01e09e2af8691913356536e",
    ((0.7, 0.0, 0.7), False): "07840353afa20bdc7d73ab4e0e67a94d1415ffef7c7a1b4a20588185a56ed491",
    ((0.7, 0.0, 0.7), True): "61ea9a2927e702a20be9d3c9b8327fec1ce19ab9ee045b66bcd76c733a8ef3bd",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models with a tensor of every float dtype, the same on every machine."""
    folder = tmp_path_factory.mktemp("models")
    paths = []
    for slot in range(3):
        draw = random.Random(slot)
        tensors = {}
        for dtype in ("F16", "BF16", "F32", "F64", "C64", *(d for d in FLOATS if d.startswith("F8"))):
            numbers = np.array([draw.uniform(-2, 2) * 2.0 ** draw.randrange(-9, 6) for _ in range(1001)])
            if dtype == "C64":
                numbers = (numbers + 1j * numbers[::-1]).astype(np.complex64)
            tensors[dtype] = (dtype, (1001,), encode(numbers, dtype).tobytes())
        paths.append(write(folder / f"{slot}.safetensors", tensors))
    return paths


@pytest.mark.parametrize(("weights", "double"), WRITTEN_BEFORE)
@pytest.mark.parametrize(("threads", "elements"), [(1, 1 << 16), (3, 100)])
def test_the_bytes_are_those_of_version_0_1_0(
    weights: Weights,
    double: bool,
    threads: int,
    elements: int,
    models: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mean_options, "_PIECE_ELEMENTS", elements)
    options = MeanOptions(weights=weights, double=double, threads=threads)
    average(models, tmp_path / "out.safetensors", options=options)
    found = hashlib.sha256((tmp_path / "out.safetensors").read_bytes()).hexdigest()
    assert found == WRITTEN_BEFORE[weights, double]
