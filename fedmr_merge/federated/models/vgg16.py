"""The 16-layer network of Simonyan and Zisserman 2015 with batch normalisation, for small images."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fedmr_merge.federated.models.base import Architecture, Classifier

_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@dataclass(frozen=True)
class Vgg16(Architecture):
    """Thirteen 3x3 convolutions in five pooled groups and three linear layers, 4096 wide.

    Configuration D of Simonyan and Zisserman 2015 as torchvision's VGG-16-BN has it, with a head that starts from the
    512 values that five poolings leave of a 32x32 image: 33.6 M parameters for 10 classes. Larger images are averaged
    to these. There is no dropout: a local step draws no random numbers, so that every engine takes the same step.
    Initialised after He et al. 2015.
    """

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
        """Return the module; `features` are the 4096 activations below the last layer."""
        self.require_size(image_shape, 32)
        return _Vgg16(image_shape[0], num_classes)


class _Vgg16(Classifier):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for group in _WIDTHS:
            for width in group:
                layers += [
                    nn.Conv2d(channels, width, kernel_size=3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.convolutions = nn.Sequential(*layers)
        self.fc1 = nn.Linear(channels, 4096)
        self.fc2 = nn.Linear(4096, 4096)
        self.fc3 = nn.Linear(4096, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        # Small, so that the first losses are about that of guessing.
        nn.init.normal_(self.fc3.weight, std=0.01)

    def features(self, images: Tensor) -> Tensor:
        hidden = self.convolutions(images).mean(dim=(2, 3))
        return F.relu(self.fc2(F.relu(self.fc1(hidden))))

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc3(features)
        return logits
