"""The 20-layer pre-activation residual network that FedMR's authors train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fedmr_merge.federated.models.base import Architecture, Classifier

_EXPANSION = 4


@dataclass(frozen=True)
class ResNet20Preact(Architecture):
    """Three stages of two bottleneck blocks, 16, 32 and 64 channels wide inside and four times that outside.

    The pre-activation network of He et al. 2016 (ECCV), 0.22 M parameters for 10 classes: each normalisation stands in
    front of its convolution, and a shortcut that changes the shape is a 1x1 convolution alone. For any number of
    channels and any size from 4x4. Convolutions are initialised after He et al. 2015, for the backward pass.
    """

    normalisation_first: ClassVar[bool] = True

    final_norm: Literal["absent", "unused", "applied"] = "absent"
    """The normalisation in front of the last layer: the authors' code has one and never applies it (`unused`); He et
    al. apply it, with a ReLU."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
        """Return the module; `features` are the 256 channel means below the last layer."""
        self.require_size(image_shape, 4)
        return _ResNet20Preact(image_shape[0], num_classes, self.final_norm)


class _ResNet20Preact(Classifier):
    def __init__(self, channels: int, num_classes: int, final_norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, kernel_size=3, padding=1, bias=False)
        self.stage1 = _stage(16, 16, stride=1)
        self.stage2 = _stage(16 * _EXPANSION, 32, stride=2)
        self.stage3 = _stage(32 * _EXPANSION, 64, stride=2)
        if final_norm != "absent":
            self.bn = nn.BatchNorm2d(64 * _EXPANSION)
        self.applies_final_norm = final_norm == "applied"
        self.fc = nn.Linear(64 * _EXPANSION, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.stage3(self.stage2(self.stage1(self.conv1(images))))
        if self.applies_final_norm:
            hidden = F.relu(self.bn(hidden), inplace=True)
        return hidden.mean(dim=(2, 3))

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc(features)
        return logits


def _stage(before: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Bottleneck(before, width, stride), _Bottleneck(width * _EXPANSION, width, 1))


class _Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = width * _EXPANSION
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, kernel_size=1, bias=False)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.conv1(F.relu(self.bn1(images), inplace=True))
        hidden = self.conv2(F.relu(self.bn2(hidden), inplace=True))
        result: Tensor = self.conv3(F.relu(self.bn3(hidden), inplace=True))
        result += self.shortcut(images)
        return result
