"""A cohort whose models are the bytes that the clients sent.

The server of a federation need not decode what it only passes on. A recombination moves the arrays among the models
(`recombine_handles`), and the next round sends the same arrays on. Whatever computes, such as a mean, sees one tensor
after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedmr_merge.federated.cohort import COMPARED_AT_ONCE, Cohort, Weights, mean_of
from fedmr_merge.flower.arrays import Form, to_array, to_tensor
from fedmr_merge.layers.plan import LayerGroup, RecombinationPlan
from fedmr_merge.recombination.in_memory import recombine_handles

if TYPE_CHECKING:
    from flwr.app import Array

Arrays = Mapping[str, Any]
"""The arrays of one model by the names of their tensors."""


class HandleCohort(Cohort):
    """K models as arrays of Flower, which were checked to have these forms. All of them are on the CPU.

    Args:
        models: The arrays of each model, by slot.
        forms: The dtype and shape of every tensor.
    """

    def __init__(self, models: Sequence[Arrays], forms: Mapping[str, Form]) -> None:
        super().__init__(_Stacks(tuple(models), forms))

    def __post_init__(self) -> None:
        """Check nothing: the arrays were checked, and to look at their tensors would decode them."""

    @property
    def _stacks(self) -> _Stacks:
        assert isinstance(self.tensors, _Stacks)
        return self.tensors

    @property
    def models(self) -> tuple[Arrays, ...]:
        """The arrays of each model, by slot."""
        return self._stacks.models

    @property
    def forms(self) -> Mapping[str, Form]:
        """The dtype and shape of every tensor."""
        return self._stacks.forms

    @property
    def slots(self) -> int:
        """The number of models, K."""
        return len(self.models)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of one model."""
        return {name: form.shape for name, form in self.forms.items()}

    @property
    def nbytes(self) -> int:
        """The bytes of all models."""
        return self.slots * sum(form.nbytes for form in self.forms.values())

    @cached_property
    def content(self) -> tuple[str, ...]:
        """A hash of every model, made of the hashes by which Flower names the arrays."""
        return tuple(content_hash(model) for model in self.models)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return torch.device("cpu")

    def slot(self, index: int) -> dict[str, Tensor]:
        """Return the model of a slot; its tensors have the memory of the arrays."""
        return {name: to_tensor(self.models[index][name], form) for name, form in self.forms.items()}

    def of_slots(self, slots: Sequence[int]) -> Cohort:
        """Return a cohort of the models of these slots."""
        return HandleCohort([self.models[slot] for slot in slots], self.forms)

    def expand(self, slots: int) -> Cohort:
        """Return a cohort of `slots` times the one model of this cohort."""
        if self.slots != 1:
            raise ValueError(f"a cohort of {self.slots} models cannot be expanded")
        return HandleCohort(self.models * slots, self.forms)

    def recombined(self, plan: RecombinationPlan, groups: Sequence[LayerGroup]) -> Cohort:
        """Return the cohort in which every layer group is that of its source: the arrays move, none is read."""
        return HandleCohort(recombine_handles(plan, groups, self.models), self.forms)

    def with_tensors(self, tensors: Weights) -> Cohort:
        """Return a cohort in which every model has these tensors."""
        arrays = {name: to_array(tensor) for name, tensor in tensors.items()}
        return HandleCohort([{**model, **arrays} for model in self.models], self.forms)

    def with_models(self, models: Mapping[int, Weights]) -> Cohort:
        """Return a cohort with these models in some slots; the arrays of the others are the same."""
        arrays = list(self.models)
        for slot, model in models.items():
            arrays[slot] = {name: to_array(model[name]) for name in self.forms}
        return HandleCohort(arrays, self.forms)

    def mean(self, weights: Sequence[float] | None = None) -> dict[str, Tensor]:
        """Return the mean model, tensor by tensor; see `Cohort.mean`."""
        shares = None if weights is None else [weight / float(sum(weights)) for weight in weights]
        return {name: mean_of(_Rows(self.models, name, form), shares) for name, form in self.forms.items()}

    def _numbers(self, names: Iterable[str]) -> Iterator[Tensor]:
        for name in names:
            rows = [row.flatten() for row in _Rows(self.models, name, self.forms[name])]
            for start in range(0, len(rows[0]), COMPARED_AT_ONCE):
                yield torch.stack([row[start : start + COMPARED_AT_ONCE].float() for row in rows])

    def to(self, device: torch.device) -> Cohort:
        """Return the cohort on a device."""
        return self if device.type == "cpu" else super().to(device)


def content_hash(model: Mapping[str, Array]) -> str:
    """Return a hash of a model's arrays: SHA-256 over the names and the hashes by which Flower names the arrays."""
    digest = hashlib.sha256()
    for name in sorted(model):
        digest.update(f"{name}\0{model[name].object_id}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Rows(Sequence[Tensor]):
    """One tensor of every model, decoded when it is asked for."""

    models: Sequence[Arrays]
    name: str
    form: Form

    def __len__(self) -> int:
        return len(self.models)

    def __getitem__(self, slot: Any) -> Any:
        return to_tensor(self.models[slot][self.name], self.form)


@dataclass(frozen=True, eq=False)
class _Stacks(Mapping[str, Tensor]):
    """The tensors of a cohort by name, [K, ...], each stacked anew when it is asked for."""

    models: tuple[Arrays, ...]
    forms: Mapping[str, Form]

    def __len__(self) -> int:
        return len(self.forms)

    def __iter__(self) -> Iterator[str]:
        return iter(self.forms)

    def __getitem__(self, name: str) -> Tensor:
        return torch.stack(list(_Rows(self.models, name, self.forms[name])))
