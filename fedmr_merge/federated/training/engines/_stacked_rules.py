"""Operations of a network on the tensors of K stacked clients, with a gradient as torch has it for them.

From the first operation to the last, the channels of all clients lie side by side, [batch, clients x channels, height,
width]: a convolution or group normalisation has K times the groups, and a batch normalisation K times the channels, so
that each client's statistics are those of its own batch. Linear layers are batched products, and attention has K times
the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import Signature, signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Stacked = tuple[Tensor, int]
"""A tensor, and which of its dimensions is that of the clients."""


@dataclass(frozen=True)
class Rule:
    """How an operation is computed for all clients."""

    compute: Callable[..., Stacked]  #: the operation on tensors [clients, ...], with the operation's own parameters
    applies: Callable[[Mapping[str, Any]], bool]  #: asked with the arguments of the operation on one client

    @cached_property
    def signature(self) -> Signature:
        """The parameters of the operation."""
        return signature(self.compute)


def _beside(images: Tensor) -> Tensor:
    """Return [clients, batch, channels, ...] as [batch, clients x channels, ...]; a view, in memory of that order."""
    return images.transpose(0, 1).flatten(1, 2)


def _apart(images: Tensor, clients: int) -> Stacked:
    """Return [batch, clients x channels, ...] as [batch, clients, channels, ...].

    It has the memory of `images`, which is not used again, and is none of its views: autograd copies the gradient of
    what writes to a view.
    """
    return torch.ops.aten._unsafe_view(images, (len(images), clients, -1, *images.shape[2:])), 1


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.flatten(0, 1)


def _convolution(function: Callable[..., Tensor], dimensions: int) -> Rule:
    """Return the rule of a convolution of images with so many dimensions."""

    def compute(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Stacked:
        clients = len(input)
        kernels = weight.flatten(0, 1)
        result = function(_beside(input), kernels, _flat(bias), stride, padding, dilation, groups * clients)
        return _apart(result, clients)

    return Rule(compute, lambda arguments: arguments["input"].dim() == dimensions + 2)


class _Products(torch.autograd.Function):
    """The product of each client's rows [clients, rows, in] with its own weight [clients, out, in].

    torch's own gradient of a weight would be transposed in memory.
    """

    generate_vmap_rule = True  # for a `vmap` of a method's own

    @staticmethod
    def forward(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        columns = weight.transpose(1, 2)
        return torch.bmm(rows, columns) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, columns)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        for_rows, for_weight, for_bias = ctx.needs_input_grad
        return (
            torch.bmm(gradient, weight) if for_rows else None,
            torch.bmm(gradient.transpose(1, 2), rows) if for_weight else None,
            gradient.sum(dim=1) if for_bias else None,
        )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Stacked:
    rows = input if input.dim() == 3 else input.flatten(1, -2)
    device = input.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # It does not reach into `_Products`.
        dtype = torch.get_autocast_dtype(device)
        rows, weight, bias = rows.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    result: Tensor = _Products.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return (result if input.dim() == 3 else torch.ops.aten._unsafe_view(result, (*input.shape[:-1], -1))), 0


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Stacked:
    # In training, the statistics are written to: a view does not copy them.
    mean, var = (
        each.view(-1) if training and each is not None else _flat(each) for each in (running_mean, running_var)
    )
    result = F.batch_norm(_beside(input), mean, var, _flat(weight), _flat(bias), training, momentum, eps)
    return _apart(result, len(input))


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Stacked:
    result = F.group_norm(_beside(input), num_groups * len(input), _flat(weight), _flat(bias), eps)
    return _apart(result, len(input))


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,  # noqa: ARG001
) -> Stacked:
    return _apart(F.max_pool2d(_beside(input), kernel_size, stride, padding, dilation, ceil_mode), len(input))


def _avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Stacked:
    options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _apart(F.avg_pool2d(_beside(input), *options), len(input))


def _adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Stacked:
    return _apart(F.adaptive_avg_pool2d(_beside(input), output_size), len(input))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Stacked:
    if attn_mask is not None:
        attn_mask = attn_mask.expand(-1, query.shape[1], *attn_mask.shape[2:])
    result = F.scaled_dot_product_attention(
        query.flatten(0, 1),
        key.flatten(0, 1),
        value.flatten(0, 1),
        attn_mask=_flat(attn_mask),
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )
    return result.view(*query.shape[:2], *result.shape[1:]), 0


def _is_attention_of_batches(arguments: Mapping[str, Any]) -> bool:
    query, mask = arguments["query"], arguments.get("attn_mask")
    return query.dim() > 2 and (mask is None or mask.dim() == query.dim())


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,  # noqa: ARG001
    size_average: bool | None = None,  # noqa: ARG001
    ignore_index: int = -100,
    reduce: bool | None = None,  # noqa: ARG001
    reduction: str = "mean",  # noqa: ARG001
    label_smoothing: float = 0.0,  # noqa: ARG001
) -> Stacked:
    losses = F.cross_entropy(input.flatten(0, 1), target.flatten(), ignore_index=ignore_index, reduction="none")
    return losses.view_as(target).sum(dim=1) / (target != ignore_index).sum(dim=1), 0


def _is_mean_cross_entropy(arguments: Mapping[str, Any]) -> bool:
    plain = {"weight": None, "size_average": None, "reduce": None, "reduction": "mean", "label_smoothing": 0.0}
    dimensions = arguments["input"].dim(), arguments["target"].dim()
    return dimensions == (2, 1) and all(arguments.get(name, value) == value for name, value in plain.items())


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,  # noqa: ARG001
    norm_type: float = 2.0,  # noqa: ARG001
    scale_grad_by_freq: bool = False,  # noqa: ARG001
    sparse: bool = False,  # noqa: ARG001
) -> Stacked:
    clients, count = weight.shape[:2]
    first = count * torch.arange(clients, device=input.device)
    rows = F.embedding(input + first.view(-1, *[1] * (input.dim() - 1)), weight.flatten(0, 1))
    if padding_idx is not None:  # its row has no gradient; `vmap` gives it one, but for the first client
        rows = torch.where((input == padding_idx % count)[..., None], rows.detach(), rows)
    return rows, 0


def _is_plain_embedding(arguments: Mapping[str, Any]) -> bool:
    return not any(arguments.get(name) for name in ("max_norm", "scale_grad_by_freq", "sparse"))


def _has_channels(arguments: Mapping[str, Any]) -> bool:
    return bool(arguments["input"].dim() > 1)


def _is_images(arguments: Mapping[str, Any]) -> bool:
    return arguments["input"].dim() == 4 and not arguments.get("return_indices")


RULES = {
    F.conv1d: _convolution(F.conv1d, 1),
    F.conv2d: _convolution(F.conv2d, 2),
    F.conv3d: _convolution(F.conv3d, 3),
    F.linear: Rule(_linear, _has_channels),
    F.batch_norm: Rule(_batch_norm, _has_channels),
    F.group_norm: Rule(_group_norm, _has_channels),
    F.max_pool2d: Rule(_max_pool2d, _is_images),
    F.avg_pool2d: Rule(_avg_pool2d, _is_images),
    F.adaptive_avg_pool2d: Rule(_adaptive_avg_pool2d, _is_images),
    F.scaled_dot_product_attention: Rule(_attention, _is_attention_of_batches),
    F.embedding: Rule(_embedding, _is_plain_embedding),
    F.cross_entropy: Rule(_cross_entropy, _is_mean_cross_entropy),
}
"""Function → its rule, for those that `vmap` maps to more launches or bytes than are needed, or not correctly."""
