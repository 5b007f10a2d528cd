"""Where the tensors of the inputs are now, among the outputs of a recombination."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence

from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.tensor_table import TensorEntry, positions
from fedmr_merge.lineage.model import Lineage


def original_entries(lineage: Lineage, models: Mapping[int, Checkpoint]) -> Sequence[Mapping[str, TensorEntry]]:
    """Return, parent by parent, where each of its tensors is now, among the outputs (by slot)."""
    tables = [models[slot].tensors for slot in range(lineage.plan.slots)]
    parents = [_Original(tables) for _ in tables]
    for origin in lineage.tensors:
        parents[origin.source_slot].place(origin.tensor, origin.slot)
    return parents


class _Original(Mapping[str, TensorEntry]):
    """The tensors of one parent, each where an output has it."""

    def __init__(self, tables: Sequence[Mapping[str, TensorEntry]]) -> None:
        self._tables = tables
        self._positions = positions(tables[0])
        self._slots = array("H", bytes(2 * len(self._positions)))

    def place(self, name: str, slot: int) -> None:
        self._slots[self._positions[name]] = slot

    def __getitem__(self, name: str) -> TensorEntry:
        return self._tables[self._slots[self._positions[name]]][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)
