"""How a GPU computes products of float32 numbers: in full, or with their factors rounded to TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def float32_products(*, tf32: bool = False) -> Iterator[None]:
    """Within the block a GPU computes products and convolutions of float32 numbers in full, or in TF32.

    Torch's default is TF32 in convolutions alone. The settings are those of the whole process, and a CPU ignores them;
    when the block ends, they are what they were before, whichever of torch's two interfaces they were made with.
    """
    settings = _settings(tf32=tf32)
    before = [getattr(owner, name) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(settings, before, strict=True):
            setattr(owner, name, value)


def _settings(*, tf32: bool, backends: Any = torch.backends) -> list[tuple[Any, str, bool | str]]:
    """Return torch's settings of this kind, each as its owner, its name and the value that it needs.

    From version 2.9 on they are strings, and the booleans of before must not even be read: torch refuses to run where
    both were used.
    """
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return [(owner, "allow_tf32", tf32) for owner in (backends.cuda.matmul, backends.cudnn)]
    owners = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    return [(owner, "fp32_precision", "tf32" if tf32 else "ieee") for owner in owners]
