"""The CNN of McMahan et al. 2017."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fedmr_merge.federated.models.base import Architecture, Classifier


@dataclass(frozen=True)
class Cnn(Architecture):
    """Two 5x5 convolutions (32 and 64 channels), each with 2x2 max pooling, and two linear layers, the first 512 wide.

    McMahan et al. 2017 (AISTATS), section 3: 1,663,370 parameters for 28x28 grey images of 10 classes. For any number
    of channels and any size from 4x4. Initialised after He et al. 2015, eq. 10, with biases and the last layer at zero.
    """

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
        """Return the module; `features` are the 512 activations below the last layer."""
        self.require_size(image_shape, 4)
        return _Cnn(image_shape, num_classes)


class _Cnn(Classifier):
    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        # Padded to keep the size: only so does the paper's parameter count come out.
        self.conv1 = nn.Conv2d(channels, 32, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding=2)
        self.fc1 = nn.Linear(64 * (height // 4) * (width // 4), 512)
        self.fc2 = nn.Linear(512, num_classes)
        for layer in (self.conv1, self.conv2, self.fc1):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        # No class is preferred before training: the loss starts at log(classes) whatever the features are.
        nn.init.zeros_(self.fc2.weight)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def features(self, images: Tensor) -> Tensor:
        # Pooling before ReLU gives the same values as after it, on a quarter of the elements.
        hidden = F.relu(F.max_pool2d(self.conv1(images), 2))
        hidden = F.relu(F.max_pool2d(self.conv2(hidden), 2))
        return F.relu(self.fc1(hidden.flatten(1)))

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc2(features)
        return logits
