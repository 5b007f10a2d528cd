"""The model as a pure function of its weights."""

from __future__ import annotations

from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedmr_merge.federated.cohort import Weights
from fedmr_merge.federated.models.base import Classifier
from fedmr_merge.federated.training.loss import CrossEntropy


class Forward:
    """Runs a module with weights that are arguments: `forward(weights, images)` gives logits.

    `weights` is a whole state dict. In training mode a batch normalisation updates the statistics in it in place, as
    torch does.
    """

    def __init__(self, module: Classifier, *, frozen: Forward | None = None, loss: CrossEntropy | None = None) -> None:
        """Run a module; `frozen` is the same model in evaluation mode, where `module` is not.

        `loss` is what its logits are trained on.
        """
        self.loss = loss or CrossEntropy()
        self._module = module
        self._parts = _Parts(module)
        self._frozen = frozen

    def __call__(self, weights: Weights, images: Tensor) -> Tensor:
        """Map images [batch, channels, height, width] to logits [batch, classes]."""
        return self._call("forward", weights, images)

    def features(self, weights: Weights, images: Tensor) -> Tensor:
        """Map images to features [batch, width]."""
        return self._call("features", weights, images)

    def head(self, weights: Weights, features: Tensor) -> Tensor:
        """Map features [batch, width] to logits [batch, classes]."""
        return self._call("head", weights, features)

    def laid_out(self, images: Tensor) -> Tensor:
        """Return images [batch, channels, height, width] in the memory layout that is fastest for model and device."""
        if images.device.type == "cpu" and self._module.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    @property
    def frozen(self) -> Forward:
        """The model in evaluation mode, for weights that are only looked at: it changes no statistics."""
        return self._frozen or self

    @cached_property
    def own(self) -> dict[str, Tensor]:
        """The module's own tensors. Called with this very mapping, no tensor has to be exchanged: it is faster."""
        return dict(self._module.state_dict(keep_vars=True))

    def _call(self, part: str, weights: Weights, values: Tensor) -> Tensor:
        if weights is self.own:
            return cast(Tensor, getattr(self._module, part)(values))
        prefixed = {f"module.{name}": tensor for name, tensor in weights.items()}
        return cast(Tensor, functional_call(self._parts, prefixed, (part, values)))


class _Parts(nn.Module):
    """Lets `functional_call`, which only calls a whole module, call a part of one."""

    def __init__(self, module: Classifier) -> None:
        super().__init__()
        self.module = module

    def forward(self, part: str, values: Tensor) -> Tensor:
        result: Tensor = getattr(self.module, part)(values)
        return result
