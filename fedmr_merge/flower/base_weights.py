"""The tensors of a model that no training changes, such as the language model below its adapters: they do not travel.

Both sides have them by the recipe. The server compares what it dispatches with its own, and the client is told the hash
of what it does not get: with other weights than the server's, it refuses to train. Frozen parameters are a part of the
model; the tensors below an adapter are beside it, in no cohort and no checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedmr_merge.federated.cohort import Cohort, weights_of
from fedmr_merge.federated.federation import Federation
from fedmr_merge.flower.arrays import Form, RefusedError, to_array
from fedmr_merge.flower.handle_cohort import Arrays, HandleCohort


class BaseWeights:
    """The frozen tensors of a federation's model, of which those that are parameters of the model stand as arrays."""

    def __init__(self, federation: Federation) -> None:
        self._tensors = frozen_parameters(federation)
        self._beside = _frozen_beside(federation)
        self.arrays: dict[str, Any] = {name: to_array(tensor) for name, tensor in self._tensors.items()}

    @cached_property
    def sha256(self) -> str:
        """The hash of all that does not travel; "" where there is nothing."""
        return hash_tensors({**self._tensors, **self._beside})

    @cached_property
    def sha256_beside(self) -> str:
        """The hash of what does not travel where all parameters do; "" where there is nothing."""
        return hash_tensors(self._beside)

    def are_in(self, cohort: Cohort) -> bool:
        """Return whether every model of a cohort has these weights, as long as they were not loaded from elsewhere."""
        if isinstance(cohort, HandleCohort):
            pairs = ((model[name], array) for model in cohort.models for name, array in self.arrays.items())
            return all(found is array or found.data == array.data for found, array in pairs)
        for name, tensor in self._tensors.items():
            rows = cohort.tensors[name]
            for row in rows[:1] if rows.stride(0) == 0 else rows:
                if not torch.equal(row, tensor):
                    return False
        return True


def frozen_parameters(federation: Federation) -> dict[str, Tensor]:
    """Return the parameters of the model that have no gradient."""
    parameters = dict(federation.module.named_parameters())
    return {
        name: tensor.detach()
        for name, tensor in weights_of(federation.module).items()
        if name in parameters and not parameters[name].requires_grad
    }


def _frozen_beside(federation: Federation) -> dict[str, Tensor]:
    """Return the tensors that a model computes with and that are no part of it: those below an adapter."""
    tensors: Sequence[Tensor] = getattr(federation.module, "frozen", ())
    return {f"frozen tensor {number}": tensor.detach() for number, tensor in enumerate(tensors)}


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names and forms; "" where there are none."""
    if not tensors:
        return ""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        digest.update(f"{name}\0{Form.of(tensor)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def complete(model: Mapping[str, Tensor], federation: Federation, sha256: str) -> dict[str, Tensor]:
    """Return a model with the tensors that did not travel, from this machine's own; `sha256` is their hash.

    Raises RefusedError when this machine has other ones.
    """
    own = weights_of(federation.module)
    absent = {name: tensor.detach() for name, tensor in own.items() if name not in model}
    found = hash_tensors({**absent, **_frozen_beside(federation)})
    if found != sha256:
        raise RefusedError(
            f"the server's frozen weights have the hash {sha256[:12]!r}, those of this machine {found[:12]!r}"
        )
    return {name: model[name] if name in model else absent[name] for name in own}


def without(model: Arrays, names: Mapping[str, Any]) -> Arrays:
    """Return a model's arrays without those that do not travel."""
    return {name: array for name, array in model.items() if name not in names} if names else model
