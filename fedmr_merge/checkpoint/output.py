"""How a model is laid out on disk: its weight files, and which source bytes go where in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fedmr_merge.checkpoint.copying import Segment, SourceWatch, copy_file
from fedmr_merge.checkpoint.folder import STANDARD_NAMES
from fedmr_merge.checkpoint.header import Header, new_header, reading
from fedmr_merge.checkpoint.metadata import HASHES_KEY, shared_metadata
from fedmr_merge.checkpoint.open import Checkpoint, WeightFile
from fedmr_merge.checkpoint.selection import MODULES, component_prefix
from fedmr_merge.checkpoint.tensor_table import JoinedTables, TensorEntry
from fedmr_merge.checkpoint.writer import write_json
from fedmr_merge.errors import PlanError

Sources = Mapping[str, TensorEntry]
#: Where a config.json, or a part of it, states the dtype of the weights; only these characters are replaced.
_STATED_DTYPE = re.compile(rb'("(?:torch_)?dtype"\s*:\s*)(?:null|"(?:torch\.)?(?:auto|b?float\d\w*|complex\d+)")')
DEFAULT_SHARD_BYTES = 5 * 10**9  #: the libraries shard by this size
ADAPTER = "adapter_model"  #: PEFT loads an adapter from one file of this name


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One weight file to write: a header, and where the bytes of its tensors come from."""

    name: str  #: its path within the model's folder, with `/`
    header: Header
    sources: Sources  #: name in the checkpoint → source

    @property
    def prefix(self) -> str:
        return component_prefix(self.name)

    @property
    def tensors(self) -> Iterator[str]:
        """The names in the checkpoint, in the order of their bytes."""
        prefix = self.prefix
        return (prefix + name for name in self.header.tensors)

    @property
    def segments(self) -> Iterator[Segment]:
        return (
            Segment(source.file, source.start, source.end) for source in map(self.sources.__getitem__, self.tensors)
        )

    @property
    def nbytes(self) -> int:
        return self.header.file_bytes


@dataclass(frozen=True)
class OutputModel:
    """One model to write: its weight files, and the model whose other files are copied beside them."""

    files: tuple[OutputFile, ...]
    is_folder: bool
    sidecars_from: Checkpoint
    indexes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  #: index to write → its weight map
    own_indexes: bool = False  #: whether the indexes are copied like the sidecars
    torch_dtype: str | None = None  #: dtype to state in config.json; unchanged if None

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def sidecar_bytes(self) -> int:
        """Size of everything that is not weights."""
        return self.sidecars_from.sidecar_bytes if self.is_folder else 0

    def path(self, folder: Path, name: str) -> Path:
        """Return the model's path in an output folder: `NAME.safetensors`, or the folder `NAME`."""
        return folder / name if self.is_folder else folder / f"{name}.safetensors"

    def file_path(self, model: Path, file: OutputFile) -> Path:
        """Return the path of one of its weight files, where `model` is the model's own path."""
        return model / file.name if self.is_folder else model

    def entries(self, model: Path) -> Mapping[str, TensorEntry]:
        """Return where its tensors will be once it is written."""
        tables = [file.header.tensors.in_file(self.file_path(model, file)) for file in self.files]
        return JoinedTables((name for file in self.files for name in file.tensors), tables)

    def prepare(self, model: Path) -> None:
        """Make the folders and write everything that is not weights."""
        if not self.is_folder:
            return
        copy_sidecars(self.sidecars_from, model, indexes=self.own_indexes, torch_dtype=self.torch_dtype)
        for file in self.files:
            (model / file.name).parent.mkdir(parents=True, exist_ok=True)
        for name, weight_map in self.indexes.items():
            component = [file for file in self.files if file.prefix == component_prefix(name)]
            write_index(model / name, weight_map, sum(f.nbytes - f.header.data_start for f in component))


def copy_sidecars(donor: Checkpoint, target: Path, *, indexes: bool = True, torch_dtype: str | None = None) -> None:
    """Copy a folder's files other than weights, and make the folders for its weights.

    A config.json that states the dtype of the weights states `torch_dtype` in the copy, if that is given. Does nothing
    when the donor is a single file.
    """
    if not donor.is_folder:
        return
    others = (*donor.sidecars, *(donor.indexes if indexes else ()))
    for folder in {(target / name).parent for name in (*others, *(file.name for file in donor.files))}:
        folder.mkdir(parents=True, exist_ok=True)
    watch = SourceWatch([])
    for name in others:
        source = donor.path / name
        if torch_dtype and name.rpartition("/")[2] == "config.json":
            with reading(source):
                content = source.read_bytes()
            (target / name).write_bytes(_STATED_DTYPE.sub(rb'\1"%s"' % torch_dtype.encode(), content))
        else:
            copy_file(source, target / name, watch)


def lay_out(
    donor: Checkpoint, sources: Sources, sidecars_from: Checkpoint | None = None, max_shard_bytes: int | None = None
) -> OutputModel:
    """Lay a model out like its donor: same files, same headers, same order of bytes, with tensors from elsewhere.

    The model is sharded anew when `max_shard_bytes` is given, and when the donor lies in a store, whose shards are
    named by their content.
    """
    sidecars_from = sidecars_from or donor
    if max_shard_bytes is not None or any(HASHES_KEY in file.header.metadata for file in donor.files):
        return _in_shards(donor, sources, sidecars_from, max_shard_bytes or DEFAULT_SHARD_BYTES)
    files = tuple(OutputFile(file.name, file.header, sources) for file in donor.files)
    # The index beside another model's sidecars would name other shards.
    is_own = sidecars_from is donor and not donor.stale_indexes
    indexes = {} if is_own else {name: _weight_map(name, files) for name in donor.indexes}
    return OutputModel(files, donor.is_folder, sidecars_from, indexes, own_indexes=is_own)


def _in_shards(donor: Checkpoint, sources: Sources, sidecars_from: Checkpoint, max_shard_bytes: int) -> OutputModel:
    """Lay a model out in shards with at most `max_shard_bytes` of tensors; a larger tensor gets a shard of its own.

    Each component keeps the name of its weights (`model.safetensors` → `model-00001-of-00003.safetensors`).
    """
    files: list[OutputFile] = []
    indexes: dict[str, Mapping[str, str]] = {}
    for prefix, group in _components(donor):
        stem = base_name(group[0].name)
        tensors = [(name, entry) for file in group for name, entry in file.header.tensors.items()]
        shards = _split([(name, entry.nbytes) for name, entry in tensors], max_shard_bytes)
        if len(shards) > 1 and (what := loaded_whole(donor, group[0].name)):
            raise PlanError(
                f"{donor.location}: {what} is loaded from one file, {stem}.safetensors, and not from shards",
                hint=f"allow shards of {sum(entry.nbytes for _, entry in tensors):,} bytes, or omit --max-shard-size",
            )
        entries, metadata = dict(tensors), shared_metadata(group)
        names = [f"{prefix}{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        if len(shards) == 1:
            names = [f"{prefix}{stem}.safetensors"]
        for name, members in zip(names, shards, strict=True):
            listed = ((m, entries[m].dtype, entries[m].shape, entries[m].nbytes) for m in members)
            files.append(OutputFile(name, new_header(listed, metadata, Path(name)), sources))
        if len(shards) > 1:
            index = f"{prefix}{stem}.safetensors.index.json"
            indexes[index] = _weight_map(index, files)
    single_file = not donor.is_folder and len(files) == 1
    return OutputModel(tuple(files), not single_file, sidecars_from, indexes)


def loaded_whole(donor: Checkpoint, name: str) -> str | None:
    """Return what a weight file is where its library takes no shards in its place, None where it may be sharded."""
    if base_name(name) == ADAPTER:
        return "a PEFT adapter"
    prefix = component_prefix(name)
    if prefix and MODULES in donor.sidecars:  # sentence-transformers: of its modules transformers alone knows shards
        config = donor.read_json(f"{prefix}config.json")
        if not isinstance(config, dict) or "model_type" not in config:
            return f"the module {prefix.rstrip('/')}"
    return None


def base_name(name: str) -> str:
    """Return the name of a weight file without its shard number: `model` for `model-00001-of-00002.safetensors`."""
    stem = PurePosixPath(name).name.removesuffix(".safetensors")
    standard = next((s for s in STANDARD_NAMES if stem.startswith(s.removesuffix(".safetensors"))), "model.safetensors")
    return standard.removesuffix(".safetensors")


def _components(donor: Checkpoint) -> list[tuple[str, list[WeightFile]]]:
    found: dict[str, list[WeightFile]] = {}
    for file in donor.files:
        found.setdefault(file.prefix, []).append(file)
    return list(found.items())


def _split(tensors: Sequence[tuple[str, int]], max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, nbytes in tensors:
        if shards[-1] and size + nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards


def _weight_map(index: str, files: Sequence[OutputFile]) -> dict[str, str]:
    place = index.rpartition("/")[0]
    prefix = f"{place}/" if place else ""
    return {
        tensor.removeprefix(prefix): file.name.removeprefix(prefix)
        for file in files
        if file.name.rpartition("/")[0] == place
        for tensor in file.tensors
    }


def write_index(path: Path, weight_map: Mapping[str, str], total_bytes: int) -> None:
    """Write the index of a sharded folder, as `transformers` and `diffusers` read it."""
    write_json(path, {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))})
