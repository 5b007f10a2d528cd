"""Random changes of training images that leave their classes as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image, drawn anew each time it is trained on."""

    flip: bool = False  #: mirrored left to right, every other time on average
    crop: int = 0  #: moved by up to so many pixels each way; black comes in at the edges

    @property
    def active(self) -> bool:
        """Whether anything is done at all."""
        return self.flip or self.crop > 0

    def draw(self, indices: Tensor, rng: np.random.Generator) -> Tensor:
        """Draw what is done to examples, given by index [examples].

        Returns int64 [examples, 4]: the index, whether mirrored, rows moved down by, columns moved right by. When
        nothing is done to images, the indices are returned as they are.
        """
        if not self.active:
            return indices
        examples = len(indices)
        mirrored = rng.integers(0, 2 if self.flip else 1, size=examples)
        moved = rng.integers(-self.crop, self.crop, size=(examples, 2), endpoint=True)
        changes = torch.from_numpy(np.column_stack([mirrored, moved])).to(indices.device)
        return torch.cat([indices[:, None], changes], dim=1)


def augmented(images: Tensor, rows: Tensor) -> Tensor:
    """Return examples of `images` [examples, channels, height, width], changed as `rows` [..., 4] of `draw` say.

    The result is [..., channels, height, width]. Whole pixels are moved, so that it does not depend on the device.
    """
    height, width = images.shape[-2:]
    index, mirrored, down, right = (part[..., None] for part in rows.unbind(dim=-1))
    y = torch.arange(height, device=images.device) - down
    x = torch.arange(width, device=images.device) - right
    inside = _within(y, height)[..., :, None] & _within(x, width)[..., None, :]
    x = torch.where(mirrored == 1, width - 1 - x, x)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    picked = images[index[..., None], :, y[..., :, None], x[..., None, :]]
    return (picked * inside[..., None]).movedim(-1, -3)


def _within(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places < size)
