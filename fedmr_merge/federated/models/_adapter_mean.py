"""The exact mean of a cohort of LoRA adapters: of what they add to the model, Σₖ wₖ Bₖ Aₖ.

The means of the factors do not multiply to the mean of the products; stacked factors do. See
`fedmr_merge.merging.exact_adapters`, which takes the same mean of files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedmr_merge.federated.cohort import Cohort, Weights, mean_of
from fedmr_merge.merging.adapters import FACTORS
from fedmr_merge.merging.exact_adapters import nearest, product_norm


def pairs_of(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the names of A and B of every layer that has an adapter."""
    for first, second in FACTORS:
        for name in names:
            if name.endswith(f".{first}"):
                yield name, name.removesuffix(first) + second


def exact_mean(cohort: Cohort, weights: Sequence[float] | None, rank: int | None) -> tuple[dict[str, Tensor], float]:
    """Return the exact mean of adapters, weighted or not, or the nearest of a rank, and the share of the norm lost.

    All other tensors are averaged.
    """
    weighted = None if weights is None else [weight / float(sum(weights)) for weight in weights]
    shares = weighted or [1 / cohort.slots] * cohort.slots
    factors: dict[str, Tensor] = {}
    for a, b in pairs_of(list(cohort.tensors)):
        factors[a], factors[b] = _stacked(cohort.tensors[a], cohort.tensors[b], shares)
    mean = {
        name: factors[name] if name in factors else mean_of(cohort.tensors[name], weighted) for name in cohort.tensors
    }
    return (mean, 0.0) if rank is None else nearest_of_rank(mean, rank)


def nearest_of_rank(adapter: Weights, rank: int) -> tuple[dict[str, Tensor], float]:
    """Return the adapter of at most a rank that is nearest to another one, and the share of the norm that is lost."""
    found, lost, norm = dict(adapter), 0.0, 0.0
    for name_a, name_b in pairs_of(list(adapter)):
        a, b = adapter[name_a], adapter[name_b]
        if len(a) <= rank:
            continue
        # On the CPU and in float64, so that every device gives the same.
        rows, columns = (tensor.detach().double().cpu().flatten(1).numpy() for tensor in (a, b.flatten(1)))
        new_a, new_b, lost_here = nearest(rows, columns, rank)
        lost, norm = lost + lost_here, norm + product_norm(new_a, new_b) ** 2 + lost_here
        for name, old, new in ((name_a, a, new_a), (name_b, b, new_b)):
            shape = (rank, *old.shape[1:]) if name == name_a else (len(old), rank, *old.shape[2:])
            found[name] = torch.from_numpy(new.copy()).to(old).view(shape)
    return found, math.sqrt(lost / norm) if lost else 0.0


def shaped_alike(adapter: Weights, like: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return an adapter with factors of another rank, without values: only shapes and dtypes can be compared."""
    found = dict(adapter)
    for a, b in pairs_of(list(adapter)):
        if a in like and b in like and len(adapter[b].shape) == len(like[b]):
            found[a] = adapter[a].new_empty((like[a][0], *adapter[a].shape[1:]))
            found[b] = adapter[b].new_empty((len(adapter[b]), like[b][1], *adapter[b].shape[2:]))
    return found


def _stacked(a: Tensor, b: Tensor, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return A [K r, …] and B [out, K r, …] from stacked A [K, r, …] and B [K, out, r, …]."""
    scaled = b * torch.tensor(shares, dtype=b.dtype, device=b.device).view(-1, *[1] * (b.dim() - 1))
    return a.flatten(0, 1), scaled.transpose(0, 1).flatten(1, 2)
