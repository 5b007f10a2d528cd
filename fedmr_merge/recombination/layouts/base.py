"""What a layout decides: how the models of a recombination are written to disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.checkpoint.copying import SourceWatch
from fedmr_merge.checkpoint.hashing import Digests
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.output import OutputModel
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.checkpoint.writer import Progress

if TYPE_CHECKING:
    from fedmr_merge.recombination.prepare import PreparedRecombination


@dataclass
class StoreReport:
    """What writing into a store cost."""

    store: Path
    linked: int = 0  #: shards that only needed a link
    copied_in: int = 0  #: shards that were copied from inputs in another layout
    copied_instead: int = 0  #: shards that were copied because no link could be made
    reason: str | None = None  #: why no link could be made


@dataclass(frozen=True)
class Forecast:
    """What writing will cost, as far as headers show it."""

    nbytes: int  #: that will be written, at most
    place: str  #: where
    shards: StoreReport | None = None  #: shards of a store that will be linked and copied in
    shard_bytes: int = 0  #: of the tensors in the shards that will be copied in


@dataclass(frozen=True)
class Written:
    """What a layout wrote."""

    digests: Mapping[int, Digests] = field(default_factory=dict)  #: slot → the SHA-256 of its tensors, if hashed
    store: StoreReport | None = None


class Layout(ABC):
    """How the models of a recombination are written: planned, checked and forecast by headers, then written."""

    max_shard_bytes: int | None = None  #: the largest shard of a model that is sharded anew

    @abstractmethod
    def plan(self, donor: Checkpoint, sources: Mapping[str, TensorEntry], sidecars_from: Checkpoint) -> OutputModel:
        """Return the model to write in a slot: laid out as its donor, with its tensors from `sources`.

        Raises PlanError where it cannot be written in this layout.
        """

    @abstractmethod
    def check(self, work: PreparedRecombination) -> None:
        """Raise OutputError where the models cannot be written. Nothing is written."""

    @abstractmethod
    def forecast(self, work: PreparedRecombination) -> Forecast:
        """Return what writing will cost."""

    @abstractmethod
    def write(
        self, work: PreparedRecombination, staging: Path, watch: SourceWatch, progress: Progress | None
    ) -> Written:
        """Write the models into a folder that becomes the output."""
