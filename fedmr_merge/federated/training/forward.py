"""The model as a pure function of its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedmr_merge.federated.cohort import Weights, weights_of
from fedmr_merge.federated.data.examples import Inputs
from fedmr_merge.federated.tasks.base import Loss


class Forward:
    """Runs a module with weights that are arguments: `forward(weights, inputs)` gives outputs, e.g. logits.

    `weights` is a whole state dict. In training mode a batch normalisation updates the statistics in it in place, as
    torch does.
    """

    def __init__(self, module: nn.Module, *, frozen: Forward | None = None, loss: Loss | None = None) -> None:
        """Run a module; `frozen` is the same model in evaluation mode, where `module` is not.

        `loss` is what its outputs are trained on, where they are.
        """
        self._loss = loss
        self._module = module
        self._parts = _Parts(module)
        self._frozen = frozen
        self.own = weights_of(module)
        """The module's own tensors. Called with this very mapping, no tensor has to be exchanged: it is faster."""

    def __call__(self, weights: Weights, inputs: Inputs) -> Tensor:
        """Map a batch of examples to outputs, e.g. images [batch, channels, height, width] to logits [batch, classes].

        Tensors by name are the module's arguments of these names.
        """
        return self._call("forward", weights, inputs)

    def features(self, weights: Weights, inputs: Inputs) -> Tensor:
        """Map a batch of examples to features [batch, width]; the module must have a head."""
        return self._call("features", weights, inputs)

    def head(self, weights: Weights, features: Tensor) -> Tensor:
        """Map features [batch, width] to outputs; the module must have a head."""
        return self._call("head", weights, features)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss that clients train on, a scalar."""
        assert self._loss is not None
        return self._loss(outputs, targets)

    def laid_out(self, inputs: Inputs) -> Inputs:
        """Return a batch in the memory layout that is fastest for model and device: of images, the channels last."""
        if not isinstance(inputs, Tensor) or inputs.dim() != 4 or inputs.device.type != "cpu":
            return inputs
        if getattr(self._module, "channels_last", False):
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def replaced(self) -> list[str]:
        """Return the names of the module's own tensors that a call has added, removed or replaced by other tensors."""
        now = weights_of(self._module)
        return [name for name in {**self.own, **now} if now.get(name) is not self.own.get(name)]

    @property
    def frozen(self) -> Forward:
        """The model in evaluation mode, for weights that are only looked at: it changes no statistics."""
        return self._frozen or self

    def _call(self, part: str, weights: Weights, values: Inputs) -> Tensor:
        if weights is self.own:
            return _applied(getattr(self._module, part), values)
        prefixed = {f"module.{name}": tensor for name, tensor in weights.items()}
        return cast(Tensor, functional_call(self._parts, prefixed, (part, values)))


class _Parts(nn.Module):
    """Lets `functional_call`, which only calls a whole module, call a part of one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, part: str, values: Inputs) -> Tensor:
        return _applied(getattr(self.module, part), values)


def _applied(function: Callable[..., Any], values: Inputs) -> Tensor:
    result: Tensor = function(values) if isinstance(values, Tensor) else function(**values)
    return result
