"""K models of one architecture as stacked tensors, buffers included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""The state dict of one model, buffers included."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """The models of one round. Every tensor has the shape [K, ...]; a model's position in it is its slot."""

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if len({tensor.shape[:1] for tensor in self.tensors.values()}) != 1 or not self.slots:
            raise ValueError("the tensors of a cohort must share a first dimension of at least 1, its slots")

    @classmethod
    def stack(cls, models: Sequence[Weights]) -> Cohort:
        """Make a cohort of copies of these models, in this order."""
        return cls({name: torch.stack([model[name] for model in models]) for name in models[0]})

    @property
    def slots(self) -> int:
        """The number of models, K."""
        return next(iter(self.tensors.values())).shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors.values())).device

    def slot(self, index: int) -> dict[str, Tensor]:
        """Return the model of a slot; its tensors are views of the cohort's."""
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def of_slots(self, slots: Sequence[int]) -> Cohort:
        """Return a cohort of copies of the models of these slots."""
        return Cohort({name: tensor[list(slots)] for name, tensor in self.tensors.items()})

    def expand(self, slots: int) -> Cohort:
        """Return a cohort of `slots` times the one model of this cohort; its tensors are views of this one's.

        Raises ValueError when there is more than one model.
        """
        if self.slots != 1:
            raise ValueError(f"a cohort of {self.slots} models cannot be expanded")
        return Cohort({name: tensor.expand(slots, *tensor.shape[1:]) for name, tensor in self.tensors.items()})

    def mean(self, weights: Sequence[float] | None = None) -> dict[str, Tensor]:
        """Return the mean model: unweighted, or weighted by `weights` (K of them, not negative, any sum above 0).

        Accumulated in float32 (float64 for float64) and returned in each tensor's own dtype.
        """
        if weights is None:
            return {name: _mean(tensor, None) for name, tensor in self.tensors.items()}
        total = float(sum(weights))
        shares = [weight / total for weight in weights]
        return {name: _mean(tensor, shares) for name, tensor in self.tensors.items()}

    def similarities(self, names: Iterable[str]) -> Tensor:
        """Return the cosines between the models, [K, K], each model being the vector of its tensors `names`."""
        gram = torch.zeros(self.slots, self.slots, dtype=torch.float64, device=self.device)
        for name in names:
            rows = self.tensors[name].flatten(1).float()
            gram += rows @ rows.T
        gram = gram.cpu()
        lengths = gram.diagonal().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
        return gram / lengths[:, None] / lengths

    def similarity(self, names: Iterable[str]) -> float:
        """Return the mean cosine over all pairs of two different slots; there must be two."""
        cosines = self.similarities(names)
        return float((cosines.sum() - cosines.trace()) / (self.slots * (self.slots - 1)))

    def to(self, device: torch.device) -> Cohort:
        """Return the cohort on a device."""
        return Cohort({name: tensor.to(device) for name, tensor in self.tensors.items()})


def _mean(stacked: Tensor, shares: Sequence[float] | None) -> Tensor:
    if not stacked.is_floating_point():
        # Integer and bool buffers have no mean: slot 0's copy is kept.
        return stacked[0].clone()
    kept = torch.float64 if stacked.dtype == torch.float64 else torch.float32
    # One slot after the other, so that the order of additions depends on neither threads nor device.
    total = torch.zeros(stacked.shape[1:], dtype=kept, device=stacked.device)
    for slot, model in enumerate(stacked):
        total.add_(model.to(kept), alpha=1.0 if shares is None else shares[slot])
    if shares is None:
        total.div_(stacked.shape[0])
    return total.to(stacked.dtype)
