"""`torch.func.vmap` for the clients of a cohort, with the operations that matter written out.

`vmap` maps every operation, and most of them well: those that work element by element, attention, embeddings. Those in
`_stacked_rules.py` it maps at a price that a GPU would pay in every step: its batch normalisation copies the inputs and
makes tensors of ones, its poolings need another order in memory, its biases are added in a pass of their own, its
cross-entropy scatters, and what writes in place is copied in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import _add_batch_dim, _unwrap_batched, is_batchedtensor
from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_current_functorch_interpreter
from torch.overrides import TorchFunctionMode

from fedmr_merge.federated.training.engines._stacked_rules import RULES, Rule, Stacked

_IN_PLACE = {
    F.relu,
    F.relu6,
    F.silu,
    F.hardswish,
    F.leaky_relu,
    torch.relu_,
    Tensor.relu_,
    Tensor.add_,
    Tensor.__iadd__,
}
"""Operations that work element by element, and in place where they are asked to."""


class StackedOperations(TorchFunctionMode):
    """Within the block, the operations that `vmap` maps and that have a rule here are computed by it.

    A rule applies where all tensors that the operation is given are stacked; all else is left to `vmap`. Counters, of
    which every batch normalisation has one, are counted up together: at the end, or before one of them is used.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counters: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Compute an operation."""
        kwargs = kwargs or {}
        if self._counters and any(self._is_counter(value) for value in (*args, *kwargs.values())):
            self._count()
        if function is Tensor.add_ and _counts(args) and not kwargs:
            self._counters.append(args[0])
            return args[0]
        rule = RULES.get(function)
        if (rule is None and function not in _IN_PLACE) or not _all_stacked(args, kwargs):
            return function(*args, **kwargs)
        if function in _IN_PLACE and _is_like_sized(args):
            return _in_place(function, args, kwargs)
        if rule is not None and rule.applies(arguments := rule.signature.bind(*args, **kwargs).arguments):
            return _by_rule(rule, arguments)
        return function(*args, **kwargs)

    def __exit__(self, *error: Any) -> None:
        """Leave the block."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if error[0] is None:
            self._count()

    def _is_counter(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return any(map(self._is_counter, value))
        return any(value is counter for counter in self._counters)

    def _count(self) -> None:
        if counters := self._counters:
            self._counters = []
            _apply(_count_up, counters)


def _counts(args: tuple[Any, ...]) -> bool:
    """Return whether a counter is counted up by one."""
    tensor, *others = args
    by_one = len(others) == 1 and isinstance(others[0], int) and others[0] == 1
    return by_one and tensor.dim() == 0 and not tensor.is_floating_point() and _all_stacked(args, {})


def _count_up(dims: tuple[int, ...], *counters: Tensor) -> Stacked:
    torch._foreach_add_(counters, 1)
    return counters[0], dims[0]


def _all_stacked(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return all(is_batchedtensor(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def _apply(compute: Callable[..., Stacked], tensors: Iterable[Tensor]) -> Any:
    """Compute with the stacked tensors; one that is the same for all, in a `vmap` of a method, is expanded.

    This is what `vmap` does for a `torch.autograd.Function` with a rule, but for what such a function costs in Python.
    The gradient is that of the operations that are computed with the stacked tensors.
    """
    interpreter = retrieve_current_functorch_interpreter()
    if not isinstance(interpreter, VmapInterpreter):
        # It is a gradient of the method's own, for which these tensors are constants.
        with interpreter.lower():
            return _apply(compute, tensors)
    level = interpreter.level()
    stacked, dims = [], []
    for tensor in tensors:
        value, dim = _unwrap_batched(tensor, level)
        stacked.append(value.expand(interpreter.batch_size(), *value.shape) if dim is None else value)
        dims.append(dim or 0)
    with interpreter.lower():
        result, dim = compute(tuple(dims), *stacked)
    return _add_batch_dim(result, dim, level)


def _is_like_sized(args: tuple[Any, ...]) -> bool:
    tensors = [value for value in args if isinstance(value, Tensor)]
    return bool(tensors) and all(value.shape == tensors[0].shape for value in tensors)


def _in_place(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Compute element by element, in whatever order the clients lie: in place, none of it is moved."""
    tensors = [value for value in args if isinstance(value, Tensor)]

    def compute(dims: tuple[int, ...], *values: Tensor) -> Stacked:
        aligned = (
            value.movedim(dim, dims[0]) if dim != dims[0] else value for value, dim in zip(values, dims, strict=True)
        )
        return function(*aligned, *args[len(tensors) :], **kwargs), dims[0]

    return _apply(compute, tensors)


def _by_rule(rule: Rule, arguments: Mapping[str, Any]) -> Any:
    given = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}

    def compute(dims: tuple[int, ...], *values: Tensor) -> Stacked:
        stacked = (value.movedim(dim, 0) if dim else value for value, dim in zip(values, dims, strict=True))
        return rule.compute(**{**arguments, **dict(zip(given, stacked, strict=True))})

    return _apply(compute, given.values())
