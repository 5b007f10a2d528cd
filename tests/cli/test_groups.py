"""What the commands say of how tensors are grouped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from small_checkpoints import Raw, floats, write

Run = Callable[..., tuple[int, str, str]]


def models(folder: Path, make: dict[str, tuple[int, ...]], same: tuple[str, ...] = ()) -> list[str]:
    paths = []
    for slot in range(2):
        generator = np.random.default_rng(slot)
        tensors: dict[str, Raw] = {name: floats(generator.normal(size=shape)) for name, shape in make.items()}
        tensors |= dict.fromkeys(same, tensors[same[0]]) if same else {}
        paths.append(str(write(folder / f"m{slot}.safetensors", tensors)))
    return paths


def test_torn_normalisations_are_a_warning_of_every_command_that_groups(run: Run, tmp_path: Path) -> None:
    paths = models(tmp_path, {"conv1.weight": (8, 3, 3, 3), "bn1.weight": (8,), "bn1.running_mean": (8,)})
    warning = "warning: 1 normalisation moves without the layer that the running statistics were measured on: 'bn1'."
    out = str(tmp_path / "out")
    for arguments in (("plan", *paths), ("recombine", *paths, "--dry-run"), ("recombine", *paths, "-o", out)):
        code, _, errors = run(*arguments, "--rule", "tensor")
        assert code == 0
        assert warning in " ".join(errors.split())
    for rule in ("layer", "model"):
        assert run("plan", *paths, "--rule", rule)[2] == ""


def test_ties_are_shown_and_can_be_undone(run: Run, tmp_path: Path) -> None:
    tied = ("_orig_mod.embed.weight", "_orig_mod.head.weight")
    paths = models(tmp_path, dict.fromkeys(tied, (32, 16)), tied)
    code, out, _ = run("plan", *paths)
    assert code == 0
    assert "tied, moved as one: _orig_mod.embed.weight = _orig_mod.head.weight" in out
    assert "1 layer group," in out
    code, out, _ = run("plan", *paths, "--no-ties")
    assert "2 layer groups," in out
    assert "--no-ties" in out.splitlines()[-1]
    code, out, _ = run("recombine", *paths, "--no-ties", "-o", str(tmp_path / "out"))
    assert (code, "2 layer groups" in out) == (0, True)
