"""Federated averaging as it is usually written: what `training.py` compares with.

PIL images through `ToTensor` and `Normalize` in a `DataLoader` (torchvision's CIFAR10 hands out its items so), every
client's model by `deepcopy`, a new `torch.optim.SGD` each, `loss.backward()`, and networks spelled out layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fedmr_merge.federated.training.precision import float32_products


class PilImages(Dataset):
    """Images the way torchvision's CIFAR10 hands them out."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        from fedmr_merge.federated.models._torchvision import torchvision  # imported first, where it can be

        assert torchvision is not None
        from torchvision import transforms

        self.images, self.labels = images, labels.tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def lenet() -> nn.Module:
    """LeNet-5 for 32x32 colour images."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def cnn() -> nn.Module:
    """The CNN of McMahan et al. 2017 for 32x32 colour images."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4096, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.new = stride, width - before

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.new:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return F.relu(out + x)


def resnet20() -> nn.Module:
    """ResNet-20 of He et al. 2016, option A."""
    widths = ((16, 16, 1), (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2))
    blocks = [Block(*each) for each in (*widths, (64, 64, 1), (64, 64, 1))]
    first = (nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@contextmanager
def at_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Compute at a precision of local training: `fp32`, `tf32` or `bf16`."""
    with (
        float32_products(tf32=precision == "tf32"),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        yield


def usual_round(
    model: nn.Module,
    clients: list[tuple[PilImages, list[list[int]]]],
    test: PilImages,
    *,
    batch_size: int,
    test_batch_size: int,
    lr: float,
    momentum: float,
    device: torch.device,
    precision: str,
) -> float:
    """Train every client in turn, average into `model`, and return its test accuracy.

    Each client comes with the order of its examples in every epoch. The precision is that of local training, `fp32`,
    `tf32` or `bf16`; the evaluation is in float32.
    """
    trained = []
    for client, orders in clients:
        local = deepcopy(model).train()
        optimiser = torch.optim.SGD(local.parameters(), lr=lr, momentum=momentum)
        for order in orders:
            for images, labels in DataLoader(client, batch_size=batch_size, sampler=order):
                images, labels = images.to(device), labels.to(device)
                optimiser.zero_grad()
                with at_precision(precision, device):
                    loss = F.cross_entropy(local(images), labels)
                    loss.backward()
                optimiser.step()
        trained.append(deepcopy(local.state_dict()))
    average = deepcopy(trained[0])
    for name in average:
        if average[name].is_floating_point():
            for other in trained[1:]:
                average[name] += other[name]
            average[name] = average[name] / len(trained)
    model.load_state_dict(average)
    model.eval()
    correct = 0
    with torch.no_grad(), float32_products():
        for images, labels in DataLoader(test, batch_size=test_batch_size):
            images, labels = images.to(device), labels.to(device)
            correct += (model(images).argmax(1) == labels).sum().item()
    return correct / len(test)


def network_alone(
    model: nn.Module, images: Tensor, labels: Tensor, test: Tensor, *, steps: int, test_batches: int, precision: str
) -> None:
    """Pass the same batch forward and backward through a network, again and again, and a test batch forward.

    What the round above would take if all but the network's own operations cost nothing: without reading images,
    optimisers, copies and averages.
    """
    model.train()
    for _ in range(steps):
        with at_precision(precision, images.device):
            torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
    model.eval()
    with torch.inference_mode(), float32_products():
        for _ in range(test_batches):
            model(test)
