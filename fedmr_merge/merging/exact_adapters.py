"""The exact mean of LoRA adapters: of what they add to the model, Σₖ wₖ sₖ Bₖ Aₖ / Σₖ wₖ, where sₖ is their scale.

The means of the factors do not multiply to the mean of the products. Stacked factors do: A' = [A₁; …; A_K] by rows and
B' = [f₁B₁ | … | f_K B_K] by columns are an adapter of rank Σ rₖ that adds exactly the mean. The singular value
decomposition of it gives the nearest adapter of a smaller rank.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmr_merge.checkpoint.copying import OpenFiles, SourceWatch
from fedmr_merge.checkpoint.header import new_header
from fedmr_merge.checkpoint.header_json import DTYPE_BITS
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.output import ADAPTER, copy_sidecars
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.checkpoint.writer import refuse_unwritable, staged_output, write_all, write_json
from fedmr_merge.errors import CheckpointError, PlanError
from fedmr_merge.hub.inputs import open_inputs, refuse_inside
from fedmr_merge.merging.adapters import CONFIG, Adapter, check_same_modules, rank_divisor, read_adapter
from fedmr_merge.merging.number_formats import Array, decode, encode
from fedmr_merge.merging.options import FLOATS, MeanOptions


@dataclass(frozen=True)
class AdapterMean:
    """What was written: the rank of the adapter, and the share of the mean's norm that a smaller rank has lost."""

    rank: int  #: the largest of its modules'
    lost: float  #: ‖mean - written‖ / ‖mean‖ over all modules; 0 for the exact mean


def average_adapters(
    checkpoints: Sequence[str | Path | Checkpoint],
    out: str | Path,
    *,
    weights: tuple[float, ...] | None = None,
    rank: int | None = None,
    ignore_config: Collection[str] = (),
) -> AdapterMean:
    """Write the mean of what K PEFT adapters of LoRA's kind add to their base model, as one adapter.

    It has the sum of their ranks and is exact but for the rounding of weights into B, or it has the rank `rank` and is
    the nearest of that rank. Full copies of modules (`modules_to_save`) are averaged. Adapters of different
    `lora_alpha` and rank are rescaled. Raises CheckpointError, PlanError (adapters that have no exact mean) or
    OutputError.
    """
    out = Path(out)
    refuse_unwritable(out)
    opened = open_inputs(checkpoints)
    refuse_inside(out, opened, "-o")
    work = _plan(opened, weights, rank, ignore_config)
    watch = SourceWatch(opened)
    with staged_output(out) as staging:
        staging.mkdir()
        copy_sidecars(opened[0], staging, indexes=False)
        write_json(staging / CONFIG, work.config())
        with OpenFiles(watch) as files:
            lost = work.write(staging / f"{ADAPTER}.safetensors", files)
        watch.check()
    return AdapterMean(max(map(work.rank_of, work.adapters[0].modules)), lost)


def _plan(
    checkpoints: Sequence[Checkpoint], weights: tuple[float, ...] | None, rank: int | None, ignore: Collection[str]
) -> _Plan:
    MeanOptions(weights).check(len(checkpoints))
    adapters = [read_adapter(checkpoint) for checkpoint in checkpoints]
    check_same_modules(adapters, ignore)
    for adapter in adapters:
        for name, entry in adapter.checkpoint.tensors.items():
            if entry.dtype not in FLOATS or entry.dtype == "C64":
                raise PlanError(f"{adapter.checkpoint.source}: {name}: {entry.dtype} numbers have no exact mean")
    shares = weights or (1.0,) * len(adapters)
    work = _Plan(tuple(adapters), tuple(weight / math.fsum(shares) for weight in shares), rank)
    full = max(work.full_rank(module) for module in adapters[0].modules)
    if rank is not None and not 0 < rank < full:
        raise PlanError(
            f"--rank {rank}: the exact mean has rank {full}", hint=f"choose a rank from 1 to {full - 1}, or --exact"
        )
    return work


@dataclass(frozen=True)
class _Plan:
    adapters: tuple[Adapter, ...]
    shares: tuple[float, ...]  #: one for each slot; their sum is 1
    rank: int | None  #: None for the exact mean

    def full_rank(self, module: str) -> int:
        return sum(adapter.rank(module) for adapter in self.adapters)

    def rank_of(self, module: str) -> int:
        full = self.full_rank(module)
        return full if self.rank is None else min(self.rank, full)

    @property
    def _alpha_factor(self) -> float:
        """What slot 0's lora_alpha is multiplied by, so that equal adapters of equal weights need no rescaling of B."""
        return 1 / math.sqrt(len(self.adapters)) if self.adapters[0].config.get("use_rslora") else 1

    def _scale(self, module: str) -> float:
        """Return what PEFT will multiply the product of the new factors by."""
        first = self.adapters[0]
        return first.alpha(module) * self._alpha_factor / rank_divisor(first.config, self.rank_of(module))

    def config(self) -> dict[str, Any]:
        """Return the configuration to write: slot 0's with the new ranks."""
        first = self.adapters[0]
        ranks = {module.removeprefix("base_model.model."): self.rank_of(module) for module in first.modules}
        rank = max(ranks.values())
        config = dict(first.config) | {"r": rank}
        config["rank_pattern"] = {module: own for module, own in ranks.items() if own != rank}
        if self._alpha_factor != 1:
            config["lora_alpha"] = first.config["lora_alpha"] * self._alpha_factor
            alphas = first.config.get("alpha_pattern") or {}
            config["alpha_pattern"] = {pattern: alpha * self._alpha_factor for pattern, alpha in alphas.items()}
        return config

    def _factors(self, module: str, read: Callable[[TensorEntry], Array]) -> tuple[Array, Array, float]:
        """Return A (rows: rank) and B (columns: rank) of a module's mean, and the squared norm that was lost.

        The loss is that of the product of the factors, times the scale that the configuration gives them.
        """
        scale = self._scale(module)
        rows, columns = [], []
        for adapter, share in zip(self.adapters, self.shares, strict=True):
            a, b = (read(adapter.checkpoint.tensors[name]) for name in adapter.modules[module])
            factor = share * adapter.scale(module) / scale
            rows.append(a.reshape(len(a), -1))
            columns.append(b.reshape(len(b), -1) * (1.0 if math.isclose(factor, 1, rel_tol=1e-12) else factor))
        a, b = np.concatenate(rows), np.concatenate(columns, axis=1)
        if self.rank_of(module) == len(a):
            return a, b, 0.0
        left, left_upper = np.linalg.qr(b)
        right, right_upper = np.linalg.qr(a.T)
        u, values, v = np.linalg.svd(left_upper @ right_upper.T)
        kept = min(self.rank_of(module), len(values))
        root = np.sqrt(values[:kept])
        a, b = (right @ v[:kept].T * root).T, left @ u[:, :kept] * root
        missing = self.rank_of(module) - kept  # a module with fewer rows or columns than the rank
        a, b = np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing)))
        return a, b, float(scale**2 * (values[kept:] ** 2).sum())

    def write(self, path: Path, files: OpenFiles) -> float:
        """Write the weights, module by module, and return the share of the norm that was lost."""
        first = self.adapters[0].checkpoint
        shapes = {name: entry.shape for name, entry in first.tensors.items()}
        for module, (a, b) in self.adapters[0].modules.items():
            rank = self.rank_of(module)
            shapes[a], shapes[b] = (rank, *shapes[a][1:]), (shapes[b][0], rank, *shapes[b][2:])
        order = [*self.adapters[0].others, *(n for pair in self.adapters[0].modules.values() for n in pair)]
        header = new_header(
            (
                (name, first.tensors[name].dtype, shapes[name], math.prod(shapes[name]) * _bytes(first.tensors[name]))
                for name in order
            ),
            first.files[0].header.metadata,
            path,
        )
        lost = norm = 0.0
        with path.open("xb", buffering=0) as stream:
            write_all(stream.fileno(), header.raw)
            for name, numbers, squares in self._tensors(files):
                raw = encode(np.ascontiguousarray(numbers).ravel(), first.tensors[name].dtype)
                write_all(stream.fileno(), raw.data)
                lost, norm = lost + squares[0], norm + squares[1]
        return math.sqrt(lost / norm) if lost else 0.0

    def _tensors(self, files: OpenFiles) -> Iterator[tuple[str, Array, tuple[float, float]]]:
        """Yield every tensor to write, with what it adds to the squared norms of the loss and of the mean."""

        def read(entry: TensorEntry) -> Array:
            return _read(entry, files)

        for name in self.adapters[0].others:
            total = np.zeros(self.adapters[0].checkpoint.tensors[name].shape)
            for adapter, share in zip(self.adapters, self.shares, strict=True):
                total += read(adapter.checkpoint.tensors[name]) * share
            yield name, total, (0.0, 0.0)
        for module, (name_a, name_b) in self.adapters[0].modules.items():
            a, b, lost = self._factors(module, read)
            norm = self._scale(module) ** 2 * float(((b.T @ b) * (a @ a.T)).sum())  # ‖BA‖² without the product
            yield name_a, a, (lost, norm + lost)
            yield name_b, b, (0.0, 0.0)


def _bytes(entry: TensorEntry) -> int:
    return DTYPE_BITS[entry.dtype] // 8


def _read(entry: TensorEntry, files: OpenFiles) -> Array:
    """Return a tensor's numbers in float64. Raises CheckpointError when it is cut off or holds NaN or infinity."""
    raw = os.pread(files.descriptor(entry.file), entry.nbytes, entry.start)
    if len(raw) != entry.nbytes:
        raise CheckpointError(entry.file, "truncated while it was read")
    numbers = np.empty(entry.parameters)
    decode(np.frombuffer(raw, np.uint8), entry.dtype, numbers)
    if not np.isfinite(numbers).all():
        raise CheckpointError(entry.file, "holds NaN or infinite numbers, of which no exact mean is taken")
    return numbers.reshape(entry.shape)
