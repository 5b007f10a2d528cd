"""The store layout: a model as a sharded folder whose shards, one for each layer group, are links into a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.checkpoint.copying import SourceWatch
from fedmr_merge.checkpoint.hashing import Digests
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.output import OutputFile, OutputModel, base_name, copy_sidecars, loaded_whole, write_index
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.checkpoint.writer import Progress, refuse_without_space
from fedmr_merge.errors import OutputError, PlanError
from fedmr_merge.hub.inputs import lies_in, refuse_inside
from fedmr_merge.layers.plan import LayerGroup
from fedmr_merge.recombination.layouts.base import Forecast, Layout, StoreReport, Written
from fedmr_merge.recombination.layouts.shards import (
    ShardWriter,
    check_store,
    held_shard,
    is_read_only,
    make_store,
    using,
)

if TYPE_CHECKING:
    from fedmr_merge.recombination.prepare import PreparedRecombination

STORE_FOLDER = ".fedmr-merge-store"


@dataclass(frozen=True)
class StoreLayout(Layout):
    """Write every model as links to shards of a store, one for each layer group.

    Args:
        store: the folder of the store; `.fedmr-merge-store` beside the output if None.
    """

    store: str | Path | None = None

    def folder(self, out: Path) -> Path:
        """Return the store that is used: the one asked for, or the one beside the output."""
        return Path(self.store) if self.store else out.parent / STORE_FOLDER

    def plan(self, donor: Checkpoint, sources: Mapping[str, TensorEntry], sidecars_from: Checkpoint) -> OutputModel:
        """Return the model to write in a slot; the store decides later which shards it has."""
        for file in donor.files:
            if what := loaded_whole(donor, file.name):
                raise PlanError(
                    f"{donor.location}: {what} is loaded from one file, {base_name(file.name)}.safetensors, and not "
                    "from a store's shards",
                    hint="leave out --layout store",
                )
        files = tuple(OutputFile(file.name, file.header, sources) for file in donor.files)
        return OutputModel(files, True, sidecars_from)

    def check(self, work: PreparedRecombination) -> None:
        """Raise OutputError where the store would be in an input or in the output, or cannot become a store, or where
        the disk does not have the room for what is never linked: the mean, and everything that is not weights.
        """
        store = self.folder(work.out)
        refuse_inside(store, work.parents, "--store")
        if lies_in(store, work.out):
            raise OutputError(store, f"lies in the output, {work.out}", hint="choose another place with --store")
        check_store(store)
        refuse_without_space(work.out, (work.mean.nbytes if work.mean else 0) + work.sidecar_bytes)

    def forecast(self, work: PreparedRecombination) -> Forecast:
        """Return how many shards will be linked, and how many of them no input holds as they are needed."""
        shards, nbytes = StoreReport(self.folder(work.out)), 0
        for slot in work.models:
            for source, prefix, members in _shards(work, slot):
                shards.linked += 1
                parent = work.parents[source]
                held = held_shard(parent, prefix, members)
                if held is None or not is_read_only(held.path):
                    shards.copied_in += 1
                    nbytes += sum(parent.tensors[prefix + member].nbytes for member in members)
        total = nbytes + (work.mean.nbytes if work.mean else 0) + work.sidecar_bytes
        return Forecast(total, f"{work.out} and the store", shards, nbytes)

    def write(
        self, work: PreparedRecombination, staging: Path, watch: SourceWatch, progress: Progress | None
    ) -> Written:
        """Link every model's shards, after copying those into the store that are not there.

        Raises OutputError when the store cannot be written to.
        """
        store = self.folder(work.out)
        make_store(store)
        with using(store):
            writer = ShardWriter(store, work.parents, watch, progress)
            digests = {slot: _write_model(work, slot, staging / work.name(slot), writer) for slot in work.models}
        return Written(digests, writer.report)


def _write_model(work: PreparedRecombination, slot: int, model: Path, writer: ShardWriter) -> Digests:
    """Write the model of a slot as links and their indexes. Returns the SHA-256 of its tensors."""
    donor = work.parents[slot]
    digests = Digests(donor.tensors)
    copy_sidecars(work.models[slot].sidecars_from, model, indexes=False)
    model.mkdir(exist_ok=True)
    weight_maps: dict[str, dict[str, str]] = {}
    for source, prefix, members in _shards(work, slot):
        stem = base_name(next(file.name for file in donor.files if file.prefix == prefix))
        shard = writer.shard(source, prefix, members)
        name = f"{stem}-{shard.address}.safetensors"
        index = f"{prefix}{stem}.safetensors.index.json"
        if index not in weight_maps:
            weight_maps[index] = {}
            (model / prefix).mkdir(parents=True, exist_ok=True)
        writer.link(shard.path, model / prefix / name)
        weight_maps[index] |= dict.fromkeys(members, name)
        for member in members:
            digests[prefix + member] = bytes.fromhex(shard.hashes[member])
    for index, weight_map in weight_maps.items():
        prefix = index[: index.rfind("/") + 1]
        write_index(model / index, weight_map, sum(donor.tensors[prefix + member].nbytes for member in weight_map))
    return digests


def _shards(work: PreparedRecombination, slot: int) -> Iterator[tuple[int, str, list[str]]]:
    """Yield (source slot, component prefix, names within the component) of every shard of an output model."""
    donor = work.parents[slot]
    for group in work.grouping.groups:
        source = work.plan.source(group.name, slot)
        for prefix, members in _by_component(donor, group).items():
            yield source, prefix, members


def _by_component(donor: Checkpoint, group: LayerGroup) -> dict[str, list[str]]:
    """Return component prefix → names within it: a shard belongs to the folder of one component."""
    components: dict[str, list[str]] = {}
    for name in group.tensors:
        prefix = donor.files_by_path[donor.tensors[name].file].prefix
        components.setdefault(prefix, []).append(name.removeprefix(prefix))
    return components
