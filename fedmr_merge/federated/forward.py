"""The model as a pure function of its weights."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.func import functional_call

from fedmr_merge.federated.architecture import Classifier
from fedmr_merge.federated.cohort import Weights


class Forward:
    """Runs a module with weights that are arguments: `forward(weights, images)` gives logits.

    `weights` is a whole state dict. In training mode a batch normalisation updates the statistics in it in place, as
    torch does.
    """

    def __init__(self, module: Classifier) -> None:
        self._parts = _Parts(module)

    def __call__(self, weights: Weights, images: Tensor) -> Tensor:
        """Map images [batch, channels, height, width] to logits [batch, classes]."""
        return self._call("forward", weights, images)

    def features(self, weights: Weights, images: Tensor) -> Tensor:
        """Map images to features [batch, width]."""
        return self._call("features", weights, images)

    def head(self, weights: Weights, features: Tensor) -> Tensor:
        """Map features [batch, width] to logits [batch, classes]."""
        return self._call("head", weights, features)

    def _call(self, part: str, weights: Weights, values: Tensor) -> Tensor:
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
