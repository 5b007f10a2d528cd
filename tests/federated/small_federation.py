"""A small federation: random 4x4 images of 3 classes, 6 clients of unlike sizes, of whom 3 train in a round."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmr_merge.federated.cohort import Cohort, Weights
from fedmr_merge.federated.data.images import ImageData
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.federation import Federation, Training, open_federation
from fedmr_merge.federated.models.base import Architecture, Classifier
from fedmr_merge.federated.protocol import State

SIZES = (4, 7, 12, 3, 5, 9)


def make_data(labels: np.ndarray | None = None, classes: int = 3, shape: tuple[int, int, int] = (1, 4, 4)) -> ImageData:
    rng = np.random.default_rng(7)
    train = rng.integers(0, classes, size=sum(SIZES)) if labels is None else labels
    test = rng.integers(0, classes, size=20)

    def images(targets: np.ndarray) -> Tensor:
        # Brighter with the class, so that there is something to learn.
        pixels = rng.integers(0, 60, size=(len(targets), *shape)) + 60 * (targets[:, None, None, None] % 3)
        return torch.from_numpy(pixels.astype(np.uint8))

    return ImageData(
        train_images=images(train),
        train_labels=torch.from_numpy(train.astype(np.int64)),
        test_images=images(test),
        test_labels=torch.from_numpy(test.astype(np.int64)),
        class_names=tuple(f"class {label}" for label in range(classes)),
        mean=(0.4,) * shape[0],
        std=(0.3,) * shape[0],
    )


def make_partition() -> Partition:
    return Partition.of(np.split(np.random.default_rng(8).permutation(sum(SIZES)), np.cumsum(SIZES)[:-1]))


class _Narrow(Classifier):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(4, 8, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, num_classes)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def features(self, images: Tensor) -> Tensor:
        hidden = F.relu(F.max_pool2d(self.conv1(images), 2))
        hidden = F.relu(F.max_pool2d(self.conv2(hidden), 2))
        return F.relu(self.fc1(hidden.flatten(1)))

    def head(self, features: Tensor) -> Tensor:
        return self.fc2(features)


@dataclass(frozen=True)
class Narrow(Architecture):
    """The model `cnn` with few channels: a step takes a third of the time."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
        return _Narrow(image_shape[0], num_classes)


def make_federation(architecture: Architecture | None = None, seed: int = 0, **training: Any) -> Federation:
    options = {"clients_per_round": 3, "local_epochs": 2, "batch_size": 4, "lr": 0.05, "momentum": 0.9} | training
    return open_federation(architecture or Narrow(), make_data(), make_partition(), Training(**options), seed=seed)


class _Normalised(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(12, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def features(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)).relu().flatten(1)

    def head(self, features: Tensor) -> Tensor:
        return self.fc(features)


@dataclass(frozen=True)
class Normalised(Architecture):
    """Has statistics, a counter, and a parameter that no loss depends on."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
        return _Normalised()


def digest(state: State) -> str:
    """Return a hash of every byte of a state."""
    content = hashlib.sha256(repr(sorted(state.facts.items())).encode())
    for family in (state.cohort.tensors, state.global_weights, state.tensors):
        for name in sorted(family):
            tensor = family[name].contiguous()
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def restored(state: State) -> State:
    """Return the state as a run folder gives it back."""

    def through_bytes(tensors: Weights) -> dict[str, Tensor]:
        return safetensors.torch.load(safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}))

    slots = [through_bytes(state.cohort.slot(slot)) for slot in range(state.cohort.slots)]
    facts = json.loads(json.dumps(state.facts))
    return State(Cohort.stack(slots), through_bytes(state.global_weights), through_bytes(state.tensors), facts)
