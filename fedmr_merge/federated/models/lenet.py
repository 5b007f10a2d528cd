"""LeNet-5, the network that FedMR's authors call CNN."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fedmr_merge.federated.models._narrow import pooled_relu
from fedmr_merge.federated.models.base import Architecture, Classifier

_WIDTHS: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    "lenet5": ((6, 16), (120, 84)),
    "femnist": ((16, 32), (256,)),
}


@dataclass(frozen=True)
class LeNet(Architecture):
    """Two 5x5 convolutions without padding, each with 2x2 max pooling, and two or three linear layers.

    After LeCun et al. 1998, with ReLU and max pooling: 62,006 parameters for 32x32 colour images of 10 classes. For
    any number of channels and any size from 16x16. Initialised as torch does.
    """

    variant: Literal["lenet5", "femnist"] = "lenet5"
    """Channels and widths: 6, 16 | 120, 84, or the authors' for FEMNIST: 16, 32 | 256."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
        """Return the module; `features` are the activations below the last layer."""
        self.require_size(image_shape, 16)
        return _LeNet(image_shape, num_classes, *_WIDTHS[self.variant])


class _LeNet(Classifier):
    channels_last = False

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, widths: tuple[int, int], hidden: tuple[int, ...]
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.conv1 = nn.Conv2d(channels, widths[0], kernel_size=5)
        self.conv2 = nn.Conv2d(widths[0], widths[1], kernel_size=5)
        sizes = (widths[1] * _pooled(height) * _pooled(width), *hidden)
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.fc = nn.Linear(sizes[-1], num_classes)

    def features(self, images: Tensor) -> Tensor:
        hidden = pooled_relu(self.conv2, pooled_relu(self.conv1, images)).flatten(1)
        for layer in self.hidden:
            hidden = F.relu(layer(hidden))
        return hidden

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc(features)
        return logits


def _pooled(size: int) -> int:
    """Return what two convolutions and poolings leave of an image's height or width."""
    return ((size - 4) // 2 - 4) // 2
