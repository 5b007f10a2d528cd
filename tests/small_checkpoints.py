"""Small checkpoints to merge, written and read without the code under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import deserialize

#: dtype, shape, bytes
Raw = tuple[str, tuple[int, ...], bytes]

BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "BOOL": 8, "U8": 8, "F4": 4}

#: A layer of every kind: with normalisation and its statistics, scalars, an empty tensor, small floats, a mask.
MIXED: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "conv1.weight": ("F32", (4, 3, 3, 3)),
    "bn1.weight": ("F32", (4,)),
    "bn1.bias": ("F32", (4,)),
    "bn1.running_mean": ("F32", (4,)),
    "bn1.running_var": ("F32", (4,)),
    "bn1.num_batches_tracked": ("I64", ()),
    "block.0.weight": ("BF16", (5, 7)),
    "block.0.bias": ("BF16", (5,)),
    "block.1.weight": ("F16", (3, 5)),
    "block.2.weight": ("F8_E4M3", (6, 3)),
    "mask": ("BOOL", (9,)),
    "nothing": ("F32", (0, 4)),
    "scale": ("F64", ()),
    "head.weight": ("F32", (10, 8)),
    "head.bias": ("F32", (10,)),
}
LINEAR: Mapping[str, tuple[str, tuple[int, ...]]] = {f"layer{i}.weight": ("F32", (3, 4)) for i in range(6)}


def finite_bytes(dtype: str, shape: tuple[int, ...], generator: np.random.Generator) -> bytes:
    """Random numbers of a dtype, none of them NaN or infinite."""
    count = prod(shape)
    if dtype in ("F32", "F64", "F16"):
        return generator.standard_normal(count).astype({"F32": "<f4", "F64": "<f8", "F16": "<f2"}[dtype]).tobytes()
    if dtype == "BF16":
        return (generator.standard_normal(count).astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    if dtype == "BOOL":
        return generator.integers(0, 2, count, np.uint8).tobytes()
    if dtype == "F8_E4M3":
        return generator.integers(0, 0x7F, count, np.uint8).tobytes()
    return (
        generator.integers(0, 100, count).astype({"I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1"}[dtype]).tobytes()
    )


def model(seed: int, layout: Mapping[str, tuple[str, tuple[int, ...]]] = MIXED) -> dict[str, Raw]:
    """A model of random finite numbers."""
    generator = np.random.default_rng(seed)
    return {name: (dtype, shape, finite_bytes(dtype, shape, generator)) for name, (dtype, shape) in layout.items()}


def floats(values: Sequence[float] | np.ndarray[Any, Any]) -> Raw:
    """A float32 tensor."""
    array = np.asarray(values, "<f4")
    return "F32", array.shape, array.tobytes()


def file_bytes(tensors: Mapping[str, Raw], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file, in the order of the mapping."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write(path: Path, tensors: Mapping[str, Raw], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file_bytes(tensors, metadata))
    return path


def write_sharded(
    folder: Path,
    tensors: Mapping[str, Raw],
    shards: int = 2,
    stem: str = "model",
    sidecars: Mapping[str, str] | None = None,
) -> Path:
    """Write a sharded folder with its index and other files."""
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}.safetensors"
        members = names[shard::shards]
        write(folder / file, {name: tensors[name] for name in members}, {"format": "pt"})
        weight_map |= dict.fromkeys(members, file)
    index = {"metadata": {"total_size": sum(len(raw) for _, _, raw in tensors.values())}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    write_sidecars(folder, sidecars)
    return folder


def write_folder(folder: Path, tensors: Mapping[str, Raw], sidecars: Mapping[str, str] | None = None) -> Path:
    """Write a folder with model.safetensors and other files."""
    write(folder / "model.safetensors", tensors, {"format": "pt"})
    write_sidecars(folder, sidecars)
    return folder


def write_sidecars(folder: Path, sidecars: Mapping[str, str] | None) -> None:
    for name, text in (sidecars or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(path: Path) -> dict[str, Raw]:
    """Read a file or a folder with the `safetensors` package; tensors of components are named `component/name`."""
    found: dict[str, Raw] = {}
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    for file in files:
        place = "" if path.is_file() or file.parent == path else f"{file.parent.relative_to(path).as_posix()}/"
        for name, tensor in deserialize(file.read_bytes()):
            assert place + name not in found
            found[place + name] = (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
