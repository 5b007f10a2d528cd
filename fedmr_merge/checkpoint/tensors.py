"""Checkpoint ↔ torch tensors, where values are needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from fedmr_merge.checkpoint.header import read_header
from fedmr_merge.checkpoint.writer import sync


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file and flush it to the disk.

    The same tensors and metadata always give the same bytes: names and metadata are sorted. Tensors may live on any
    device and need not be contiguous; two names may share memory.
    """
    cpu = {name: tensors[name].detach().to("cpu", copy=True).contiguous() for name in sorted(tensors)}
    path.write_bytes(save(cpu, metadata=dict(sorted((metadata or {}).items()))))
    sync(path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a safetensors file, on the CPU. Raises CheckpointError when the file is damaged."""
    read_header(path)
    return load_file(path)
