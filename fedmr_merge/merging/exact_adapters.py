"""The exact mean of LoRA adapters: of what they add to the model, Σₖ wₖ sₖ Bₖ Aₖ / Σₖ wₖ, where sₖ is their scale.

The means of the factors do not multiply to the mean of the products. Stacked factors do: A' = [A₁; …; A_K] by rows and
B' = [f₁B₁ | … | f_K B_K] by columns are an adapter of rank Σ rₖ that adds exactly the mean. The singular value
decomposition of it gives the nearest adapter of a smaller rank.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from fedmr_merge.checkpoint.copying import OpenFiles, SourceWatch, read_exactly
from fedmr_merge.checkpoint.folder import WEIGHTS
from fedmr_merge.checkpoint.hashing import hash_tensors
from fedmr_merge.checkpoint.header import new_header
from fedmr_merge.checkpoint.header_json import DTYPE_BITS
from fedmr_merge.checkpoint.open import Checkpoint, open_checkpoint
from fedmr_merge.checkpoint.output import ADAPTER, copy_sidecars
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.checkpoint.writer import (
    Progress,
    refuse_unwritable,
    refuse_without_space,
    staged_output,
    write_all,
    write_json,
)
from fedmr_merge.errors import CheckpointError, OutputError, PlanError
from fedmr_merge.hub.inputs import open_inputs, refuse_inside
from fedmr_merge.lineage.model import HERE, LINEAGE_FILE
from fedmr_merge.lineage.parents import recorded_place
from fedmr_merge.lineage.writer import HASHED_AT_ONCE_BYTES, write_lineage
from fedmr_merge.merging.adapters import (
    CONFIG,
    Adapter,
    check_same_modules,
    mean_entries,
    rank_divisor,
    read_adapter,
)
from fedmr_merge.merging.number_formats import Array, decode, encode
from fedmr_merge.merging.options import FLOATS, MeanOptions, MeanOutcome
from fedmr_merge.merging.record import average_facts, mean_facts
from fedmr_merge.plain_values import whole

_PIECE_ELEMENTS = 1 << 20  # of a tensor beside the factors, at a time: 8 MB in float64


def average_adapters(
    checkpoints: Sequence[str | Path | Checkpoint],
    out: str | Path,
    options: MeanOptions | None = None,
    *,
    rank: int | None = None,
    ignore_config: Collection[str] = (),
    progress: Progress | None = None,
) -> MeanOutcome:
    """Write the mean of what K PEFT adapters of LoRA's kind add to their base model, as one adapter.

    It has the sum of their ranks and is exact but for the rounding of weights into B, or it has the rank `rank` and is
    the nearest of that rank. Full copies of modules (`modules_to_save`) are averaged. Adapters of different
    `lora_alpha` and rank are rescaled. Of the options only the weights are looked at. Raises CheckpointError, PlanError
    (adapters that have no exact mean) or OutputError.
    """
    out, options, rank = Path(out), options or MeanOptions(), None if rank is None else whole(rank, "rank")
    refuse_unwritable(out)
    plan = partial(plan_exact, out=out, options=options, rank=rank, ignore_config=ignore_config)
    opened = open_inputs(checkpoints, plan)
    work, watch = plan(opened), SourceWatch(opened)
    with staged_output(out) as staging:
        staging.mkdir()
        copy_sidecars(opened[0], staging, indexes=False)
        write_json(staging / CONFIG, work.config())
        with OpenFiles(watch) as files:
            lost = work.write(staging / f"{ADAPTER}.safetensors", files, progress)
        watch.check()
        mean = open_checkpoint(staging)
        hashes = hash_tensors(mean.tensors, SourceWatch([])) if mean.nbytes <= HASHED_AT_ONCE_BYTES else None
        facts = mean_facts(HERE, MeanOptions(options.weights, double=True), hashes, {"rank": rank, "lost": lost})
        write_lineage(staging / LINEAGE_FILE, average_facts(opened, out, facts, ignore_config), ())
    return MeanOutcome(rank=max(map(work.rank_of, work.modules)), lost=lost)


def plan_exact(
    checkpoints: Sequence[Checkpoint], out: Path, options: MeanOptions, rank: int | None, ignore_config: Collection[str]
) -> AdapterMean:
    """Return the mean to write, from headers and configurations alone. Raises what `average_adapters` raises."""
    if out.suffix == WEIGHTS:
        raise OutputError(out, "names one file, and an adapter is a folder", hint="name a folder with -o")
    work = plan_adapters(checkpoints, options, rank, ignore_config)
    refuse_inside(out, checkpoints, "-o")
    for checkpoint in checkpoints:
        recorded_place(checkpoint, out)  # refuses what a lineage could not name
    refuse_without_space(out, sum(map(_nbytes, work.entries.values())) + checkpoints[0].sidecar_bytes)
    return work


def plan_adapters(
    checkpoints: Sequence[Checkpoint], options: MeanOptions, rank: int | None, ignore: Collection[str]
) -> AdapterMean:
    """Return the exact mean to take, from configurations and headers. Raises CheckpointError or PlanError."""
    if len(checkpoints) < 2:
        raise PlanError(
            f"merging needs two models or more, found {len(checkpoints)}", hint="name K adapters of one base model"
        )
    options.check(len(checkpoints))
    adapters = [read_adapter(checkpoint) for checkpoint in checkpoints]
    check_same_modules(adapters, ignore)
    for adapter in adapters:
        for name, entry in adapter.checkpoint.tensors.items():
            if entry.dtype not in FLOATS or entry.dtype == "C64":
                raise PlanError(f"{adapter.checkpoint.location}: {name}: {entry.dtype} numbers have no exact mean")
    shares = options.weights or (1.0,) * len(adapters)
    work = AdapterMean(tuple(adapters), tuple(weight / math.fsum(shares) for weight in shares), rank)
    full = max(map(work.full_rank, work.modules))
    if rank is not None and not 0 < rank < full:
        raise PlanError(
            f"--rank {rank}: the exact mean has rank {full}", hint=f"choose a rank from 1 to {full - 1}, or --exact"
        )
    return work


@dataclass(frozen=True)
class AdapterMean:
    """The exact mean of adapters, or the nearest to it of a smaller rank, module by module."""

    adapters: tuple[Adapter, ...]
    shares: tuple[float, ...]  #: one for each slot; their sum is 1
    rank: int | None  #: None for the exact mean

    @property
    def modules(self) -> Sequence[str]:
        return tuple(self.adapters[0].modules)

    @cached_property
    def entries(self) -> dict[str, TensorEntry]:
        """The tensors of the mean, with the places of slot 0's, in the order in which they are written."""
        first = self.adapters[0]
        found = mean_entries([adapter.checkpoint.tensors for adapter in self.adapters], self.rank)
        return {name: found[name] for name in (*first.others, *(n for pair in first.modules.values() for n in pair))}

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

    def stacked(self, module: str, files: OpenFiles) -> tuple[Array, Array]:
        """Return A [rank, in] and B [out, rank] of a module's exact mean, in float64."""
        rows, columns = [], []
        for adapter, share in zip(self.adapters, self.shares, strict=True):
            a, b = (read_numbers(adapter.checkpoint.tensors[name], files) for name in adapter.modules[module])
            factor = share * adapter.scale(module) / self._scale(module)
            rows.append(a.reshape(len(a), -1))
            columns.append(b.reshape(len(b), -1) * (1.0 if math.isclose(factor, 1, rel_tol=1e-12) else factor))
        return np.concatenate(rows), np.concatenate(columns, axis=1)

    def write(self, path: Path, files: OpenFiles, progress: Progress | None = None) -> float:
        """Write the weights, module by module, and return the share of the norm that was lost."""
        header = new_header(
            ((name, entry.dtype, entry.shape, _nbytes(entry)) for name, entry in self.entries.items()),
            self.adapters[0].checkpoint.files[0].header.metadata,
            path,
        )
        lost = norm = 0.0
        with path.open("xb", buffering=0) as stream:
            write_all(stream.fileno(), header.raw)
            for name, numbers, squares in self._tensors(files):
                raw = encode(np.ascontiguousarray(numbers).ravel(), self.entries[name].dtype)
                write_all(stream.fileno(), raw.data)
                lost, norm = lost + squares[0], norm + squares[1]
                if progress:
                    progress(raw.nbytes)
        return math.sqrt(lost / norm) if lost else 0.0

    def other(self, name: str, files: OpenFiles) -> Iterator[tuple[int, Array]]:
        """Yield the mean of a tensor beside the factors in pieces, each with the index of its first number.

        It can be as large as a tensor of the model, such as an embedding.
        """
        parameters = self.entries[name].parameters
        for first in range(0, parameters, _PIECE_ELEMENTS):
            count = min(_PIECE_ELEMENTS, parameters - first)
            total = np.zeros(count)
            for adapter, share in zip(self.adapters, self.shares, strict=True):
                total += _read_piece(adapter.checkpoint.tensors[name], files, first, count) * share
            yield first, total

    def _tensors(self, files: OpenFiles) -> Iterator[tuple[str, Array, tuple[float, float]]]:
        """Yield every tensor to write, or one piece of it after the other, with what it adds to the squared norms of
        the loss and of the mean.
        """
        for name in self.adapters[0].others:
            for _, numbers in self.other(name, files):
                yield name, numbers, (0.0, 0.0)
        for module, (name_a, name_b) in self.adapters[0].modules.items():
            a, b = self.stacked(module, files)
            lost = 0.0
            if self.rank_of(module) < len(a):
                a, b, lost = nearest(a, b, self.rank_of(module))
            square = self._scale(module) ** 2
            norm = square * (product_norm(a, b) ** 2 + lost)
            yield name_a, a, (square * lost, norm)
            yield name_b, b, (0.0, 0.0)


def _nbytes(entry: TensorEntry) -> int:
    """Return the number of bytes of a tensor of the mean; its place, and so its `nbytes`, are those of slot 0's."""
    return entry.parameters * DTYPE_BITS[entry.dtype] // 8


def nearest(a: Array, b: Array, rank: int) -> tuple[Array, Array, float]:
    """Return A [rank, in] and B [out, rank] whose product is nearest to BA, and the squared norm of the difference."""
    left, left_upper = np.linalg.qr(b)
    right, right_upper = np.linalg.qr(a.T)
    u, values, v = np.linalg.svd(left_upper @ right_upper.T)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept])
    a, b = (right @ v[:kept].T * root).T, left @ u[:, :kept] * root
    missing = rank - kept  # a module with fewer rows or columns than the rank
    a, b = np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing)))
    return a, b, float((values[kept:] ** 2).sum())


def product_norm(a: Array, b: Array) -> float:
    """Return ‖BA‖ without the product, which is as large as a weight of the model."""
    return float(np.linalg.norm(np.linalg.qr(b)[1] @ np.linalg.qr(a.T)[1].T))


def read_numbers(entry: TensorEntry, files: OpenFiles) -> Array:
    """Return a tensor's numbers in float64. Raises CheckpointError when it is cut off or holds NaN or infinity."""
    return _read_piece(entry, files, 0, entry.parameters).reshape(entry.shape)


def _read_piece(entry: TensorEntry, files: OpenFiles, first: int, count: int) -> Array:
    raw, numbers = read_bytes(entry, files, first, count), np.empty(count)
    decode(raw, entry.dtype, numbers)
    if not np.isfinite(numbers).all():
        raise CheckpointError(entry.file, "holds NaN or infinite numbers, of which no exact mean is taken")
    return numbers


def read_bytes(entry: TensorEntry, files: OpenFiles, first: int, count: int) -> Array:
    """Return the bytes (uint8) of `count` numbers of a tensor from the one with the index `first` on.

    Raises CheckpointError when the file is cut off or cannot be read.
    """
    size = DTYPE_BITS[entry.dtype] // 8
    raw = np.empty(count * size, np.uint8)
    read_exactly(entry.file, files.descriptor(entry.file), entry.start + first * size, raw.data)
    return raw
