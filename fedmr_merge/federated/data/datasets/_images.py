"""What all data sets of images have in common: their options, and the last steps to ImageData."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.augmentation import Augmentation
from fedmr_merge.federated.data.datasets.base import DataSet
from fedmr_merge.federated.data.images import ImageData

_KNOWN = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    # The mean of the deviations within single images, which much published code takes for that of all pixels.
    "cifar10-per-image": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

_COUNTED_AT_ONCE = 256  # images

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.int64]


class Part(NamedTuple):
    """The training or the test part."""

    images: Pixels  #: [examples, channels, height, width]
    labels: Numbers  #: [examples]
    clients: Numbers | None = None  #: [examples], whose example it is


@dataclass(frozen=True, kw_only=True)
class ImageDataSet(DataSet):
    """Base of the data sets of images, with the options that all of them have."""

    normalisation: Literal["measured", "half", "cifar10", "cifar10-per-image", "imagenet"] = "measured"
    """Mean and deviation of a channel: those of the training part; 0.5 and 0.5; those of CIFAR-10, of all its pixels or
    within an image; those of ImageNet."""
    flip: bool = False  #: augmentation: mirror a training image left to right, every other time on average
    crop: Annotated[int, Ge(0)] = 0  #: augmentation: move a training image by up to so many pixels each way

    def assemble(self, train: Part, test: Part, class_names: Sequence[str], notes: Sequence[str] = ()) -> ImageData:
        """Return the data of these parts; `notes` say what was decided while they were read.

        Raises DataError when a part is empty, or when a label has no class.
        """
        for name, part in (("training", train), ("test", test)):
            self.require_classes(name, part, class_names)
        mean, std = self._statistics(train.images)
        return ImageData(
            train_images=torch.from_numpy(train.images),
            train_labels=torch.from_numpy(train.labels),
            test_images=torch.from_numpy(test.images),
            test_labels=torch.from_numpy(test.labels),
            class_names=tuple(class_names),
            mean=mean,
            std=std,
            train_clients=None if train.clients is None else torch.from_numpy(train.clients),
            augmentation=Augmentation(flip=self.flip, crop=self.crop),
            notes=tuple(notes),
            measured=self.normalisation == "measured",
        )

    def require_classes(self, name: str, part: Part, class_names: Sequence[str]) -> None:
        """Raise DataError when a part is empty, or when a label has no class; `name` is what the message calls it."""
        if not len(part.labels):
            raise DataError(f"{self.name}: the {name} part has no examples")
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= len(class_names):
            wrong = low if low < 0 else high
            raise DataError(
                f"{self.name}: the {name} part has the label {wrong}, but there are {len(class_names)} classes",
                hint="-1 stands for examples without a label" if wrong < 0 else None,
            )

    def _statistics(self, images: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
        channels = images.shape[1]
        if self.normalisation == "half":
            return (0.5,) * channels, (0.5,) * channels
        if self.normalisation == "measured":
            return measured(images)
        mean, std = _KNOWN[self.normalisation]
        if channels != len(mean):
            raise DataError(
                f"normalisation {self.normalisation} is for colour images, these have {channels} channel(s)",
                hint="set data.normalisation to measured",
            )
        return mean, std


def measured(images: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel, of pixels scaled to 0..1, to four decimals."""
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        # Counted, not summed: exact, and without a copy of all images in floating point.
        counts = np.zeros(256, dtype=np.int64)
        for start in range(0, len(images), _COUNTED_AT_ONCE):  # bincount makes a copy of eight times the size
            part = images[start : start + _COUNTED_AT_ONCE, channel]
            counts += np.bincount(part.ravel(), minlength=256)
        mean = float(counts @ levels / counts.sum())
        means.append(round(mean, 4))
        # A channel of one colour is left as it is.
        deviations.append(round(float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum())), 4) or 1.0)
    return tuple(means), tuple(deviations)


def numbered(values: NDArray[Any]) -> tuple[Numbers, NDArray[Any]]:
    """Number the different values from 0 in sorted order; return the number of every entry, and the values.

    Where strings are among numbers, as JSON lines may have them, all are compared as strings.
    """
    try:
        different, numbers = np.unique(values, return_inverse=True)
    except TypeError:
        different, numbers = np.unique(values.astype(str), return_inverse=True)
    return numbers.astype(np.int64), different
