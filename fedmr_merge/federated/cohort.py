"""K models of one architecture as stacked tensors, buffers included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedmr_merge.layers.plan import LayerGroup, RecombinationPlan
from fedmr_merge.recombination.in_memory import recombine_stacked

COMPARED_AT_ONCE = 1 << 24  # of each model that are compared at once: larger tensors are not copied as a whole

Weights = Mapping[str, Tensor]
"""The state dict of one model, buffers included; a tensor that has two names in the model is there once."""


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module's state dict themselves; one that is tied to another has its first name alone."""
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if first.setdefault(id(tensor), name) == name}


class Mean(NamedTuple):
    """A global model, as the mean of a cohort."""

    weights: Weights
    metrics: Mapping[str, float] = {}  #: what the mean lost, for the metrics of the round


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
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of one model."""
        return {name: tuple(tensor.shape[1:]) for name, tensor in self.tensors.items()}

    @property
    def nbytes(self) -> int:
        """The bytes of all models."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def content(self) -> tuple[str, ...] | None:
        """A hash of the content of every model, where the cohort knows it without reading one; else None."""
        return None

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

    def recombined(self, plan: RecombinationPlan, groups: Sequence[LayerGroup]) -> Cohort:
        """Return the cohort in which every layer group is that of the slot that the plan names as its source."""
        # In one copy to the device, where lists would take one for every tensor.
        rows = torch.tensor([plan.permutations[group.name] for group in groups], device=self.device)
        return Cohort(recombine_stacked(plan, groups, self.tensors, rows=rows))

    def with_tensors(self, tensors: Weights) -> Cohort:
        """Return a cohort in which every model has these tensors."""
        expanded = {name: tensor.expand(self.slots, *tensor.shape) for name, tensor in tensors.items()}
        return Cohort({**self.tensors, **expanded})

    def with_models(self, models: Mapping[int, Weights]) -> Cohort:
        """Return a cohort with these models in some slots."""
        return Cohort.stack([models[slot] if slot in models else self.slot(slot) for slot in range(self.slots)])

    def mean(self, weights: Sequence[float] | None = None) -> dict[str, Tensor]:
        """Return the mean model: unweighted, or weighted by `weights` (K of them, not negative, any sum above 0).

        Accumulated in float32 (float64 for float64) and returned in each tensor's own dtype.
        """
        shares = None if weights is None else [weight / float(sum(weights)) for weight in weights]
        return {name: mean_of(tensor, shares) for name, tensor in self.tensors.items()}

    def similarities(self, names: Iterable[str]) -> Tensor:
        """Return the cosines between the models, [K, K], each model being the vector of its tensors `names`."""
        gram = torch.zeros(self.slots, self.slots, dtype=torch.float64, device=self.device)
        for rows in self._numbers(names):
            gram += rows @ rows.T
        gram = gram.cpu()
        lengths = gram.diagonal().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
        return gram / lengths[:, None] / lengths

    def _numbers(self, names: Iterable[str]) -> Iterator[Tensor]:
        """Yield the numbers of the models' tensors `names`, float32 [K, at most `COMPARED_AT_ONCE`]."""
        for name in names:
            tensor = self.tensors[name]
            rows = tensor.flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1)
            for start in range(0, rows.shape[1], COMPARED_AT_ONCE):
                yield rows[:, start : start + COMPARED_AT_ONCE].float().contiguous()

    def similarity(self, names: Iterable[str], slots: Sequence[int] | None = None) -> float:
        """Return the mean cosine over all pairs of two different slots, of all or of these; there must be two."""
        rows = torch.arange(self.slots) if slots is None else torch.tensor(slots)
        cosines = self.similarities(names).index_select(0, rows).index_select(1, rows)
        return float((cosines.sum() - cosines.trace()) / (len(rows) * (len(rows) - 1)))

    def to(self, device: torch.device) -> Cohort:
        """Return the cohort on a device."""
        return Cohort({name: tensor.to(device) for name, tensor in self.tensors.items()})


def mean_of(rows: Sequence[Tensor] | Tensor, shares: Sequence[float] | None) -> Tensor:
    """Return the mean of one tensor of several models, given one after the other or stacked; see `Cohort.mean`."""
    first = rows[0]
    if not first.is_floating_point():
        # Integer and bool buffers have no mean: slot 0's copy is kept.
        return first.clone()
    kept = torch.float64 if first.dtype == torch.float64 else torch.float32
    # One slot after the other, so that the order of additions depends on neither threads nor device.
    total = torch.zeros(first.shape, dtype=kept, device=first.device)
    for slot, row in enumerate(rows):
        total.add_(row.to(kept), alpha=1.0 if shares is None else shares[slot])
    if shares is None:
        total.div_(len(rows))
    return total.to(first.dtype)
