"""Count the floating-point operations that a model computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def count_flops(function: Callable[[], object]) -> int:
    """Return how many floating-point operations a function's products and convolutions take, two per multiply-add.

    The function is called once, without gradients. The sum is that of torch's `FlopCounterMode`, which imports the
    compiler first: on a CPU that takes longer than a round of a small model.
    """
    counter = _Counter()  # type: ignore[no-untyped-call]
    with torch.no_grad(), counter:
        function()
    return counter.flops


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    supports_higher_order_operators = True  # some are in torch's table; what a branch computes is not seen
    flops: int = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether the compiler is imported to be told not to compile this mode."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(getattr(func, "overloadpacket", func)):
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result
