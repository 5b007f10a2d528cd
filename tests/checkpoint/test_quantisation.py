"""Codes are recognised by the scales beside them. What libraries write is in tests/merging/test_average.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmr_merge.checkpoint.quantisation import find_scales
from fedmr_merge.checkpoint.tensor_table import TensorEntry


def found(**tensors: tuple[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    entries = {
        name.replace("__", "."): TensorEntry(dtype, shape, Path("file"), 0, 0)
        for name, (dtype, shape) in tensors.items()
    }
    return list(find_scales(entries))


@pytest.mark.parametrize(
    ("codes", "scale"),
    [
        ({"fc__weight": ("I8", (4, 8))}, {"fc__weight_scale": ("F32", (4, 1))}),
        ({"fc__weight": ("F8_E4M3", (4, 8))}, {"fc__scale_weight": ("F32", ())}),
        ({"fc__qweight": ("I32", (4, 8))}, {"fc__scales": ("F16", (2, 8))}),
        ({"up_proj_blocks": ("U8", (4, 2, 16))}, {"up_proj_scales": ("U8", (4, 2))}),
        ({"fc__weight": ("U8", (64, 1))}, {"fc__weight__absmax": ("F32", (2,))}),
        ({"fc__codes": ("U8", (4, 8))}, {"fc__blocks": ("F16", (4, 2))}),
    ],
)
def test_a_scale_beside_codes(
    codes: dict[str, tuple[str, tuple[int, ...]]], scale: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    ((code_name,), (scale_name,)) = ([name.replace("__", ".") for name in part] for part in (codes, scale))
    assert found(**codes, **scale) == [(code_name, scale_name)]
    assert found(**scale, **codes) == [(code_name, scale_name)]


@pytest.mark.parametrize(
    "tensors",
    [
        {"fc__weight": ("F32", (4, 8)), "fc__weight_scale": ("F32", (4, 1))},  # a float is a number by itself
        {"fc__weight": ("I8", (4, 8)), "other__weight_scale": ("F32", (4, 1))},  # of another module
        {"fc__weight": ("I8", (4, 8)), "fc__weight_scale": ("F32", (8, 8))},  # larger than what it would scale
        {"position_ids": ("I64", (1, 8)), "scale": ("F32", (1,))},  # no codes have 64 bits
        {"counter": ("I32", (8,)), "scale": ("F32", (1,))},  # a vector
    ],
)
def test_what_is_no_code_is_not_taken_for_one(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    assert found(**tensors) == []
