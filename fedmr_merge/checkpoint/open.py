"""Open a checkpoint: a file, a folder, a sharded folder or a pipeline of components becomes one `Checkpoint`.

Opening reads headers only. Which files of a folder are the model is decided by `selection.select`; the tensors of a
component are named after its folder, `unet/conv_in.weight`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedmr_merge.checkpoint.folder import DiskListing, check_sidecar, inside, is_index, read_json, refuse_pickle
from fedmr_merge.checkpoint.header import Header, read_header
from fedmr_merge.checkpoint.selection import Selection, component_prefix, select
from fedmr_merge.checkpoint.shard_index import read_weight_map
from fedmr_merge.checkpoint.tensor_table import JoinedTables, TensorEntry
from fedmr_merge.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One safetensors file of a checkpoint."""

    name: str  #: its place in the checkpoint's folder, with `/`: `unet/model.safetensors`
    path: Path
    header: Header

    @property
    def prefix(self) -> str:
        return component_prefix(self.name)


@dataclass(frozen=True)
class Checkpoint:
    """One model on disk. Its tensors are in the order of the files and of their bytes."""

    path: Path  #: the file or folder that was opened
    is_folder: bool
    files: tuple[WeightFile, ...]
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]  #: of all files together
    sidecars: tuple[str, ...]  #: other files of the folder that belong to the model, with `/`
    indexes: tuple[str, ...]  #: shard indexes, with `/`
    stale_indexes: Mapping[str, str] = field(default_factory=dict)  #: index → in what it differs from its shards
    origin: str | None = None  #: `org/name@commit/subfolder` where it came from the Hub
    left_out: tuple[str, ...] = ()  #: weights and indexes that lie beside those of the model and are not part of it
    left_behind: tuple[str, ...] = ()  #: other files there that are not copied and may be missed
    sidecar_bytes: int = 0  #: of all sidecars
    named_index: str | None = None  #: the index that says which model of the folder is meant, where one was named
    licence: str | None = None  #: of its repository, as the Hub states it
    card_read: bool = True  #: whether a licence of None means that the repository states none
    card: Mapping[str, Any] = field(default_factory=dict)  #: more of its repository's card: library, task, language …
    is_remote: bool = False  #: known by its headers and configuration only; its tensors are not on this machine

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.tensors.values())

    @property
    def parameters(self) -> int:
        return sum(entry.parameters for entry in self.tensors.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.tensors.items()}

    @cached_property
    def files_by_path(self) -> dict[Path, WeightFile]:
        return {file.path: file for file in self.files}

    @property
    def location(self) -> str:
        """Where the model is, as lineages and messages name it: a path, or a Hub id."""
        return self.origin or str(self.place)

    @property
    def place(self) -> Path:
        """The path that was named to open it."""
        return self.path / self.named_index if self.named_index else self.path

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON sidecar, None where there is none.

        Raises CheckpointError when it is not JSON.
        """
        return read_json(self.path / name) if name in self.sidecars else None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a safetensors file, a folder that holds one model, or the shards that an index names; reads headers only.

    Args:
        path: A `.safetensors` file, a folder, or a `….safetensors.index.json`.

    Returns:
        The checkpoint; its tensors are in the order of the files and of their bytes.

    Raises:
        CheckpointError: With the file and the reason: not there, pickled weights, damaged, a shard missing, an index
            that points outside the folder.

    Examples:
        >>> open_checkpoint("model.safetensors").shapes  # doctest: +SKIP
        {'layer.weight': (3, 4)}
    """
    path = Path(path)
    if path.is_dir():
        return open_selection(path, select(DiskListing(path)))
    if not path.exists():
        raise CheckpointError(
            path, "no such file or folder", hint="name a .safetensors file, a model's folder or a Hub id, org/name"
        )
    if not path.is_file():
        raise CheckpointError(path, "not a file or folder")
    if is_index(path.name):
        return open_selection(path.parent, select(DiskListing(path.parent), path.name))
    refuse_pickle(path)
    weights = WeightFile(path.name, path, read_header(path))
    return checkpoint_of(path, (weights,))


def open_selection(folder: Path, selection: Selection) -> Checkpoint:
    """Open the files of a folder that were selected.

    Raises CheckpointError where one is damaged, leads out of the folder or cannot be read.
    """
    places = ((name, inside(folder, name)) for name in selection.weights)
    files = tuple(WeightFile(name, path, read_header(path)) for name, path in places)
    for name in selection.sidecars:
        check_sidecar(folder, name)
    nbytes = sum((folder / name).stat().st_size for name in selection.sidecars)
    return replace(checkpoint_of(folder, files, selection), sidecar_bytes=nbytes)


def checkpoint_of(path: Path, files: tuple[WeightFile, ...], selection: Selection | None = None) -> Checkpoint:
    """Return the checkpoint that these weight files are; a `selection` says what else of its folder belongs to it.

    Raises CheckpointError where there are no tensors, or two files hold tensors of one name.
    """
    names = [file.prefix + name if file.prefix else name for file in files for name in file.header.tensors]
    if not names:
        raise CheckpointError(path, "holds no tensors", hint="name a checkpoint with weights in it")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        places = [file for file in files if any(file.prefix + name == twice for name in file.header.tensors)]
        raise CheckpointError(
            path,
            f"tensor {twice!r} is in two files, {places[0].name} and {places[1].name}",
            hint="remove the one that does not belong to this model",
        )
    tables = [file.header.tensors for file in files]
    is_one = len(files) == 1 and not files[0].prefix
    tensors = tables[0] if is_one else JoinedTables(names, tables)
    metadata = {key: value for file in files for key, value in file.header.metadata.items()}
    if selection is None:
        return Checkpoint(path, False, files, tensors, metadata, (), ())
    stale = {index: _compare_index(path / index, component_prefix(index), files) for index in selection.indexes}
    return Checkpoint(
        path,
        True,
        files,
        tensors,
        metadata,
        selection.sidecars,
        selection.indexes,
        {index: what for index, what in stale.items() if what},
        left_out=selection.left_out,
        left_behind=selection.left_behind,
        named_index=selection.named_index,
    )


def _compare_index(index: Path, prefix: str, files: tuple[WeightFile, ...]) -> str:
    """Return in what an index differs from its shards; nothing where they agree.

    The libraries load what the shards hold, whatever the index says of single tensors, and so does this package.
    """
    shards = {file.name.removeprefix(prefix): file.header.tensors for file in files if file.prefix == prefix}
    elsewhere, listed = [], 0
    for name, shard in read_weight_map(index).items():
        if name in shards[shard]:
            listed += 1
        else:
            elsewhere.append(name)
    faults = []
    if elsewhere:
        faults.append(
            f"{len(elsewhere):,} of its tensors are not in the shard that it names, such as {elsewhere[0]!r:.80}"
        )
    if (unlisted := sum(map(len, shards.values())) - listed) > 0:
        faults.append(f"{unlisted:,} of the tensors in its shards are not where it says, or not in it")
    return "; ".join(faults)
