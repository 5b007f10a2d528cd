"""Small models for tests of the Hub: real safetensors bytes and folders."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmr_merge.checkpoint.header import build_header
from fedmr_merge.checkpoint.selection import Selection
from fedmr_merge.hub import snapshot as source
from fedmr_merge.hub.client import open_hub
from fedmr_merge.hub.http import Patience
from fedmr_merge.hub.listing import HubSnapshot

CARD = "---\nlicense: mit\nlibrary_name: fedmr-merge\n---\n# A model\n"
#: Waits for nothing: what fails fails at once, and what is tried again is tried again at once.
QUICK = Patience(timeout_seconds=10, retries=3, first_wait_seconds=0.001, longest_wait_seconds=0.01)
ONCE = Patience(timeout_seconds=10, retries=0)


# What a command does with one client, each with a client of its own.


def resolve_hub(ref: str, **options: Any) -> HubSnapshot:
    with open_hub(**{"patience": QUICK, **options}) as hub:
        return source.resolve_hub(hub, ref)


def expand_hub(ref: str, **options: Any) -> tuple[HubSnapshot, ...]:
    with open_hub(**{"patience": QUICK, **options}) as hub:
        return source.expand_hub(hub, ref)


def select_files(snapshot: HubSnapshot) -> Selection:
    with open_hub(endpoint=snapshot.endpoint, patience=QUICK) as hub:
        return source.select_files(hub, snapshot)


def weight_files(snapshot: HubSnapshot) -> tuple[str, ...]:
    return tuple(map(snapshot.outer, select_files(snapshot).weights))


def fetch(snapshot: HubSnapshot, files: Sequence[str] | None = None, **options: Any) -> Path:
    with open_hub(endpoint=snapshot.endpoint, **{"patience": QUICK, **options}) as hub:
        return source.fetch_files(hub, snapshot, files) if files else source.fetch_model(hub, snapshot)


def read_remote_header(snapshot: HubSnapshot, file: str) -> bytes:
    with open_hub(endpoint=snapshot.endpoint, patience=QUICK) as hub:
        return source.read_remote_header(hub, snapshot, file)


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
