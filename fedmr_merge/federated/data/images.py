"""Images to train and test on, and the base of the plug-ins in `datasets/` that load them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedmr_merge.federated.data.augmentation import Augmentation, augmented
from fedmr_merge.federated.data.examples import Data, Part


@dataclass(frozen=True, eq=False)
class ImageData(Data):
    """A data set for image classification, decoded, on one device."""

    kind: ClassVar[str] = "images"

    train_images: Tensor  #: uint8 [examples, channels, height, width], 0 to 255
    train_labels: Tensor  #: int64 [examples]
    test_images: Tensor  #: held out: never seen in training
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  #: per channel, of pixels scaled to 0..1; subtracted before a model sees an image
    std: tuple[float, ...]  #: per channel, of pixels scaled to 0..1; divided by
    train_clients: Tensor | None = None  #: int64 [examples], counted from 0: whose example it is, where that is known
    augmentation: Augmentation = field(default_factory=Augmentation)  #: what is done to training images
    notes: tuple[str, ...] = ()  #: what was decided while the data were read, for people
    measured: bool = False  #: whether mean and std were measured on the training images

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.image_shape

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.train_images.device

    def to(self, device: torch.device) -> ImageData:
        """Return the data on a device."""
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 images [..., channels, height, width] into the float32 values that a model is fed."""
        return images.to(torch.float32).mul_(self._scale).add_(self._shift)

    def targets(self, part: Part) -> Tensor:
        """Return the labels of a part."""
        return self.train_labels if part == "train" else self.test_labels

    def inputs(self, part: Part, where: Tensor | slice) -> Tensor:
        """Return images of a part, normalised."""
        return self.normalise(self._pixels(part, where))

    def draw_changes(self, indices: Tensor, rng: np.random.Generator) -> Tensor:
        """Draw how training images are augmented."""
        return self.augmentation.draw(indices, rng)

    def training_inputs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return training images as they are trained on, normalised, and their indices.

        `rows` come from `augmentation.draw`: indices [...], or int64 [..., 4] where images are changed.
        """
        if not self.augmentation.active:
            return self.inputs("train", rows), rows
        return self.normalise(augmented(self.train_images, rows)), rows[..., 0]

    def _pixels(self, part: Part, where: Tensor | slice) -> Tensor:
        images = self.train_images if part == "train" else self.test_images
        if isinstance(where, slice):
            return images[where]
        # Whole images are copied at once, which indexing with a tensor does not do.
        return images.index_select(0, where.flatten()).view(*where.shape, *self.image_shape)

    def preprocess(self) -> dict[str, Any]:
        """Return what a user of the model must do to an image, as `config.json` says it."""
        return {"mean": list(self.mean), "std": list(self.std), "size": list(self.image_shape[1:])}

    # (x / 255 - mean) / std as one product and one sum, with a value for every pixel: memory is then gone through in
    # order, which takes a fifth of the time of a value for every channel.
    @cached_property
    def _scale(self) -> Tensor:
        return self._every_pixel(1 / (255 * torch.tensor(self.std, device=self.device)))

    @cached_property
    def _shift(self) -> Tensor:
        std = torch.tensor(self.std, device=self.device)
        return self._every_pixel(-(torch.tensor(self.mean, device=self.device) / std))

    def _every_pixel(self, channels: Tensor) -> Tensor:
        return channels.view(-1, 1, 1).expand(self.image_shape).contiguous()
