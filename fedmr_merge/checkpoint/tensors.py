"""Checkpoint ↔ torch tensors, where values are needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from fedmr_merge.checkpoint.header import build_header, read_header
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.writer import sync, write_all

_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file and flush it to the disk.

    The same tensors and metadata always give the same bytes: names and metadata are sorted (the `safetensors` package
    writes metadata in an order that changes from process to process). Tensors may live on any device and need not be
    contiguous; two names may share memory.
    """
    names = sorted(tensors)
    entries = (
        (name, _DTYPES[tensor.dtype], tuple(tensor.shape), tensor.numel() * tensor.element_size())
        for name in names
        for tensor in (tensors[name],)
    )
    with path.open("wb", buffering=0) as stream:
        write_all(stream.fileno(), build_header(entries, dict(sorted((metadata or {}).items()))))
        for name in names:
            flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
            write_all(stream.fileno(), flat.view(torch.uint8).numpy().data)
    sync(path)


def load_checkpoint(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Read every tensor of an opened checkpoint, on the CPU."""
    found: dict[str, torch.Tensor] = {}
    for file in checkpoint.files:
        found |= {file.prefix + name: tensor for name, tensor in load_file(file.path).items()}
    return found


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a safetensors file, on the CPU. Raises CheckpointError when the file is damaged."""
    read_header(path)
    return load_file(path)
