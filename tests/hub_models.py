"""Small models for tests of the Hub: real safetensors bytes and folders."""

from __future__ import annotations

import random
from pathlib import Path

from fedmr_merge.checkpoint.header import build_header
from fedmr_merge.hub.http import Patience

CARD = "---\nlicense: mit\nlibrary_name: fedmr-merge\n---\n# A model\n"
#: Waits for nothing: what fails fails at once, and what is tried again is tried again at once.
QUICK = Patience(timeout_seconds=10, retries=3, first_wait_seconds=0.001, longest_wait_seconds=0.01)
ONCE = Patience(timeout_seconds=10, retries=0)


def weights(seed: int, nbytes: int = 64, metadata: dict[str, str] | None = None) -> bytes:
    """Return a safetensors file with one tensor of random bytes."""
    assert nbytes % 4 == 0
    header = build_header([("layer.weight", "F32", (nbytes // 4,), nbytes)], metadata)
    return header + random.Random(seed).randbytes(nbytes)


def write_model(folder: Path, seed: int = 0, *, nbytes: int = 64, card: str | None = CARD) -> Path:
    """Write a model's folder: weights, config and, unless it is None, a card."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights(seed, nbytes))
    (folder / "config.json").write_text('{"architecture": "cnn"}')
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder


def write_cohort(folder: Path, slots: int, *, seed: int = 0) -> Path:
    """Write what a recombination leaves behind: the slots, their mean and a lineage."""
    for slot in range(slots):
        write_model(folder / f"slot-{slot:02d}", seed + slot, card=None)
    write_model(folder / "global", seed + slots, card=None)
    (folder / "lineage.json").write_text("{}")
    return folder
