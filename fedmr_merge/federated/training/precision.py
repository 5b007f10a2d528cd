"""How products are computed: of float32 numbers on a GPU in full or with their factors rounded to TF32; and whether a
processor has instructions for bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""What Linux calls the instructions that multiply bfloat16 numbers: of x86 processors, and the last one of Arm's."""


def describe_slow_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return one line about a processor without instructions for bfloat16; None where it has them, or is not known."""
    if _has_bf16(cpuinfo) is not False:
        return None
    return (
        "training.precision is bf16, and this processor has no instructions for bfloat16 (neither avx512_bf16 nor "
        f"amx_bf16; torch uses its {torch.backends.cpu.get_cpu_capability()}): a round can take many times as long as "
        "with fp32, and gains nothing"
    )


def describe_unused_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return one line about a processor with instructions for bfloat16, for a run that computes in float32.

    None where it has none, or is not known.
    """
    if not _has_bf16(cpuinfo):
        return None
    return (
        "this processor has instructions for bfloat16, which a model of this size may gain from: with "
        "training.precision bf16 the products of local training are computed by them, and the weights stay in float32"
    )


def _has_bf16(cpuinfo: Path) -> bool | None:
    """Return whether the processor has such instructions, as the system lists them: torch has no public function for
    that. None where the system does not say what the processor has.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, listed = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return any(flag in _BF16_FLAGS for flag in listed.split())
    return None


def _settings(*, tf32: bool, backends: Any = torch.backends) -> list[tuple[Any, str, bool | str]]:
    """Return torch's settings of this kind, each as its owner, its name and the value that it needs.

    From version 2.9 on they are strings, and the booleans of before must not even be read: torch refuses to run where
    both were used.
    """
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return [(owner, "allow_tf32", tf32) for owner in (backends.cuda.matmul, backends.cudnn)]
    owners = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    return [(owner, "fp32_precision", "tf32" if tf32 else "ieee") for owner in owners]
