"""An image, as people have it, → what a published model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

    Image: TypeAlias = PIL.Image.Image | np.ndarray[Any, Any] | Tensor


@dataclass(frozen=True)
class Preprocess:
    """Turn an image into the input of a model: convert its channels, scale it to the model's size, and normalise it.

    Args:
        mean: For every channel, the mean of pixels scaled to 0..1.
        std: For every channel, the standard deviation of pixels scaled to 0..1.
        size: Height and width of the model's input.

    Examples:
        >>> preprocess = Preprocess(mean=[0.5], std=[0.25], size=[8, 8])
        >>> preprocess(torch.zeros(16, 16, dtype=torch.uint8)).shape
        torch.Size([1, 1, 8, 8])
    """

    mean: Sequence[float]
    std: Sequence[float]
    size: Sequence[int]

    def __call__(self, image: Image) -> Tensor:
        """Return float32 [batch, channels, height, width], as the model was trained on.

        `image` is a PIL image; an array [height, width] or [height, width, channels]; or a tensor [height, width],
        [channels, height, width] or [batch, channels, height, width]. uint8 pixels are 0 to 255, floats are 0 to 1.

        Raises ValueError for an image of other shapes, channels or numbers.
        """
        images = self._converted(_as_tensor(image, len(self.mean)))
        height, width = self.size
        if images.shape[-2:] != (height, width):
            images = interpolate(images, (height, width), mode="bilinear", antialias=True)
        std = torch.tensor(self.std).view(-1, 1, 1)
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        return images * (1 / (255 * std)) + -(mean / std)  # as ImageData.normalise, bit for bit

    def _converted(self, images: Tensor) -> Tensor:
        """Return pixels of 0 to 255 as float32, with the model's channels."""
        found, wanted = images.shape[1], len(self.mean)
        if images.dtype == torch.uint8:
            images = images.to(torch.float32)
        elif images.is_floating_point() and bool(((images >= 0) & (images <= 1)).all()):
            images = 255 * images.to(torch.float32)
        else:
            raise ValueError(f"pixels must be uint8, or floats from 0 to 1; these are {images.dtype}")
        if found == 1 and wanted == 3:
            return images.expand(-1, 3, -1, -1)
        if found == 3 and wanted == 1:
            return (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(
                1, keepdim=True
            )  # ITU-R 601, as PIL
        if found != wanted:
            raise ValueError(f"the model takes images with {wanted} channels, this one has {found}")
        return images


def _as_tensor(image: Any, channels: int) -> Tensor:
    """Return an image as [batch, channels, height, width], its numbers unchanged."""
    if isinstance(image, Tensor):
        tensor = image.detach().cpu()
    else:
        import numpy as np

        if hasattr(image, "convert"):  # PIL's
            image = image.convert("L" if channels == 1 else "RGB")
        array = np.array(image)
        if array.dtype == object or array.ndim not in (2, 3):
            raise ValueError(
                "name a PIL image, an array [height, width, channels] or a tensor [channels, height, width]"
            )
        tensor = torch.from_numpy(array)
        tensor = tensor if tensor.ndim == 2 else tensor.permute(2, 0, 1)
    if not 2 <= tensor.ndim <= 4 or 0 in tensor.shape:
        raise ValueError(f"an image of shape {list(tensor.shape)} is not [channels, height, width]")
    return tensor[(None,) * (4 - tensor.ndim)]
