"""A convolution of few output channels with its pooling, on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NARROW = 8
"""Channels up to which two positions fit into the 16 float32 numbers that a CPU's vectors hold."""


def pooled_relu(convolution: nn.Conv2d, images: Tensor) -> Tensor:
    """Return relu(max_pool2d(convolution(images), 2)), for a convolution without padding or stride.

    A CPU computes the channels of one position together, and 6 take it as long as 16. A narrow convolution is
    therefore run with a stride of 2 to the right and twice its channels: those of a position, and those of the next
    one, for which the kernel is moved by a pixel. The same sums, to rounding, in about two thirds of the time; and
    the maximum over the two is one over channels, which is many times as fast as pooling.
    """
    if images.device.type != "cpu" or convolution.out_channels > _NARROW:
        # ReLU after pooling gives the same values as before it, on a quarter of the elements.
        return F.relu(F.max_pool2d(convolution(images), 2))
    assert convolution.bias is not None
    kernel = torch.cat([F.pad(convolution.weight, (0, 1)), F.pad(convolution.weight, (1, 0))])
    left, right = F.conv2d(images, kernel, convolution.bias.repeat(2), stride=(1, 2)).chunk(2, dim=1)
    rows: Tensor = _Maximum.apply(left, right)  # type: ignore[no-untyped-call]
    batch, channels, height, width = rows.shape
    pairs = rows[:, :, : height // 2 * 2].reshape(batch, channels, height // 2, 2, width)
    upper, lower = pairs.unbind(dim=3)
    result: Tensor = _Maximum.apply(upper, lower)  # type: ignore[no-untyped-call]
    # With the channels last in memory: the next convolution and pooling are fastest so, and vmap can map this way.
    return F.relu(result.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


class _Maximum(torch.autograd.Function):
    """The larger of two, elementwise. The gradient is the first one's where they are equal, as it is in pooling."""

    generate_vmap_rule = True

    @staticmethod
    def forward(first: Tensor, second: Tensor) -> Tensor:
        return torch.maximum(first, second)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        first, second = ctx.saved_tensors
        # In the memory order of the others: elementwise operations take many times as long where orders differ.
        gradient = gradient.contiguous()
        # The gradient of ReLU at second - first: gradient where that is above 0.
        of_second = torch.ops.aten.threshold_backward(gradient, second - first, 0)
        return gradient - of_second, of_second
