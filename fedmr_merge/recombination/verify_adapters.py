"""Verify the exact mean of adapters: take it again, and compare the factors A and B of every module.

What is exact is compared byte for byte. A mean of a smaller rank is not the same on every machine (the singular value
decomposition is not), so that its distance from the exact mean is compared with the smallest that there is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedmr_merge.checkpoint.copying import OpenFiles, SourceWatch
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.lineage.model import Lineage
from fedmr_merge.merging.adapters import factor_of, read_config
from fedmr_merge.merging.exact_adapters import (
    AdapterMean,
    nearest,
    plan_adapters,
    product_norm,
    read_bytes,
    read_numbers,
)
from fedmr_merge.merging.number_formats import Array, encode
from fedmr_merge.merging.options import MeanOptions

#: Half of the distance of 1 to the next number: what rounding changes a number by, relatively.
_ROUNDING = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
#: The keys of a configuration by which PEFT scales the product of the factors.
_SCALING = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")


def first_difference(
    lineage: Lineage, mean: Checkpoint, inputs: Sequence[Checkpoint], weights: tuple[float, ...] | None
) -> str | None:
    """Take the mean again and return how the one that was written differs, None where it does not.

    `weights` are those of the inputs; None where all count the same.

    Raises CheckpointError or PlanError where the inputs have no exact mean any more.
    """
    assert lineage.exact_adapters is not None
    rank, ignored = lineage.exact_adapters["rank"], lineage.facts.get("ignore_config", ())
    work = plan_adapters(inputs, MeanOptions(weights), rank, ignored)
    written, expected = read_config(mean), work.config()
    for key in _SCALING:
        if (written.get(key) or None) != (expected.get(key) or None):
            return f"adapter_config.json sets {key} to {written.get(key)!r:.60}, it must be {expected.get(key)!r:.60}"
    with OpenFiles(SourceWatch((mean, *inputs))) as files:
        for name in work.adapters[0].others:
            if not all(_is(piece, mean.tensors[name], files, first) for first, piece in work.other(name, files)):
                return f"tensor {name!r} is not the mean of its copies"
        for module in work.modules:
            if difference := _module_difference(work, mean, module, files):
                return difference
    return None


def _module_difference(work: AdapterMean, mean: Checkpoint, module: str, files: OpenFiles) -> str | None:
    names = work.adapters[0].modules[module]
    entries = [mean.tensors[name] for name in names]
    a, b = work.stacked(module, files)
    if work.rank_of(module) == len(a):
        for name, numbers, entry in zip(names, (a, b), entries, strict=True):
            if not _is(numbers, entry, files):
                return f"{factor_of(name)} is not what the inputs' are stacked to"
        return None
    found_a, found_b = (read_numbers(entry, files) for entry in entries)
    found_a, found_b = found_a.reshape(len(found_a), -1), found_b.reshape(len(found_b), -1)
    distance = product_norm(np.concatenate([a, found_a]), np.concatenate([b, -found_b], axis=1))
    smallest = nearest(a, b, work.rank_of(module))[2] ** 0.5
    rounding = max(_ROUNDING.get(entry.dtype, 2.0**-3) for entry in entries)
    norms = float(np.linalg.norm(found_a) * np.linalg.norm(found_b) + np.linalg.norm(a) * np.linalg.norm(b))
    if distance > smallest + 2.1 * rounding * norms + 1e-12 * norms:
        return f"the product of the factors A and B of {module} is not the nearest to the exact mean"
    return None


def _is(numbers: Array, entry: TensorEntry, files: OpenFiles, first: int = 0) -> bool:
    """Return whether these are the numbers of a tensor from the one with the index `first` on, as they are written."""
    expected = encode(np.ascontiguousarray(numbers).ravel(), entry.dtype)
    return np.array_equal(read_bytes(entry, files, first, numbers.size), expected)
