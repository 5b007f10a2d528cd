"""The 20-layer residual network for CIFAR of He et al. 2016."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fedmr_merge.federated.models.base import Architecture, Classifier


@dataclass(frozen=True)
class ResNet20(Architecture):
    """Three stages of three basic blocks, 16, 32 and 64 channels wide, with shortcuts that have no parameters.

    He et al. 2016 (CVPR), section 4.2, option A: 269,722 parameters for colour images of 10 classes. For any number of
    channels and any size from 4x4. Convolutions are initialised after He et al. 2015, eq. 10.
    """

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
        """Return the module; `features` are the 64 channel means below the last layer."""
        self.require_size(image_shape, 4)
        return _ResNet20(image_shape[0], num_classes)


class _ResNet20(Classifier):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.stage1 = _stage(16, 16, stride=1)
        self.stage2 = _stage(16, 32, stride=2)
        self.stage3 = _stage(32, 64, stride=2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        hidden: Tensor = F.relu(self.bn1(self.conv1(images)), inplace=True)
        hidden = self.stage3(self.stage2(self.stage1(hidden)))
        return hidden.mean(dim=(2, 3))

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc(features)
        return logits


def _stage(before: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(before, width, stride), _Block(width, width, 1), _Block(width, width, 1))


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.new_channels = width - before

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(images)), inplace=True)
        hidden = self.bn2(self.conv2(hidden))
        hidden += self._shortcut(images)
        return F.relu(hidden, inplace=True)

    def _shortcut(self, images: Tensor) -> Tensor:
        if not self.new_channels:
            return images
        # Every other pixel, and zeros for the channels that are new.
        return F.pad(images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
