"""Torch tensors to files and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.checkpoint.tensors import load_tensors, save_tensors
from fedmr_merge.errors import CheckpointError


def tensors() -> dict[str, torch.Tensor]:
    shared = torch.arange(6.0)
    return {
        "b": shared.view(2, 3).t(),  # not contiguous
        "a": shared,
        "c": shared[2:4],  # shares memory
        "d": torch.tensor(3),
        "e": torch.ones(2, dtype=torch.bfloat16, requires_grad=True),
        "f": torch.zeros(0, 3),
    }


def test_round_trip(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", tensors(), {"k": "v"})
    found = load_tensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors().keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors().items()
    )
    assert open_checkpoint(tmp_path / "x.safetensors").metadata == {"k": "v"}


def test_same_tensors_same_bytes_whatever_their_order(tmp_path: Path) -> None:
    given, backwards = tensors(), dict(reversed(tensors().items()))
    save_tensors(tmp_path / "x", given, {"k": "v", "a": "b"})
    save_tensors(tmp_path / "y", backwards, {"a": "b", "k": "v"})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_damage_is_named(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", tensors())
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="x: truncated"):
        load_tensors(tmp_path / "x")
