"""Open a checkpoint: a file, a folder, a sharded folder or a pipeline of components becomes one `Checkpoint`.

Opening reads headers only. Layouts:

    model.safetensors                               a file
    folder/model.safetensors                        a folder (also adapter_model, diffusion_pytorch_model)
    folder/model.safetensors.index.json             a sharded folder: the index maps each tensor to its shard
    folder/unet/…, folder/text_encoder/…            a pipeline (diffusers): each component is a folder as above,
                                                    its tensors are named `unet/conv_in.weight` and so on; with a
                                                    model_index.json the components are the model, whatever lies beside
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedmr_merge.checkpoint.folder import (
    INDEX,
    PICKLE_SUFFIXES,
    PIPELINE,
    STANDARD_NAMES,
    WEIGHTS,
    inside,
    names_in,
    read_json,
    refuse_pickle,
    weights_in,
)
from fedmr_merge.checkpoint.header import Header, read_header
from fedmr_merge.checkpoint.shard_index import read_weight_map
from fedmr_merge.checkpoint.sidecars import find_sidecars, is_missed, module_folders
from fedmr_merge.checkpoint.tensor_table import JoinedTables, TensorEntry
from fedmr_merge.errors import CheckpointError


def component_prefix(name: str) -> str:
    """Return what stands before the names of a file's tensors in the checkpoint: the component and a slash, or
    nothing.
    """
    folder = name.rpartition("/")[0]
    return f"{folder}/" if folder else ""


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
    origin: str | None = None  #: `org/name@commit/subfolder` where it came from the Hub
    left_out: tuple[str, ...] = ()  #: weight files that lie beside those of the model and are not part of it
    left_behind: tuple[str, ...] = ()  #: other files that lie there, do not come along and may be missed
    sidecar_bytes: int = 0  #: of all sidecars
    named_index: str | None = None  #: the index that says which model of the folder is meant, where one was named
    licence: str | None = None  #: what the Hub says of its repository
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
    def source(self) -> str:
        """How lineage and messages call it."""
        return self.origin or str(self.place)

    @property
    def place(self) -> Path:
        """What was named to open it."""
        return self.path / self.named_index if self.named_index else self.path

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON sidecar, None where there is none.

        Raises CheckpointError when it is not JSON.
        """
        return read_json(self.path / name) if name in self.sidecars else None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a safetensors file or a folder that holds one model.

    Raises CheckpointError with the file and the reason: not there, pickle weights, damaged, a shard missing, an index
    that points outside the folder.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CheckpointError(
            path, "no such file or folder", hint="name a .safetensors file, a model's folder or a Hub id, org/name"
        )
    if not path.is_file():
        raise CheckpointError(path, "not a file or folder")
    if path.name.endswith(INDEX):
        return _open_folder(path.parent, path.name)
    refuse_pickle(path)
    weights = WeightFile(path.name, path, read_header(path))
    return checkpoint_of(path, False, (weights,), (), ())


def _open_folder(folder: Path, named_index: str | None = None) -> Checkpoint:
    is_pipeline = (folder / PIPELINE).is_file()
    if not is_pipeline and _indexes(folder) == [named_index]:
        named_index = None  # the folder says as much
    names, indexes = _pipeline_weights(folder) if is_pipeline and not named_index else ([], [])
    if not names:
        names, index = _weight_names(folder, named_index)
        indexes = [index] if index else []
    if not names:
        names, indexes = _pipeline_weights(folder)
    if not names:
        _explain_no_weights(folder)
    places = ((name, inside(folder, name)) for name in names)
    files = tuple(WeightFile(name, path, read_header(path)) for name, path in places)
    sidecars = tuple(sorted(find_sidecars(folder, deep=all(file.prefix for file in files))))
    checkpoint = checkpoint_of(folder, True, files, sidecars, tuple(indexes))
    beside = {f"{prefix}{name}" for prefix in _prefixes(files) for name in names_in(folder / prefix)}
    checkpoint = replace(
        checkpoint,
        left_out=tuple(sorted(_weights_beside(folder, files, beside) - set(names))),
        left_behind=tuple(sorted(name for name in beside if is_missed(name))),
        sidecar_bytes=sum((folder / name).stat().st_size for name in sidecars),
        named_index=named_index,
    )
    for index_name in indexes:
        _check_index(checkpoint, index_name)
    return checkpoint


def checkpoint_of(
    path: Path, is_folder: bool, files: tuple[WeightFile, ...], sidecars: tuple[str, ...], indexes: tuple[str, ...]
) -> Checkpoint:
    """Return the checkpoint that these weight files are. Raises CheckpointError where two hold tensors of one name."""
    names = [file.prefix + name if file.prefix else name for file in files for name in file.header.tensors]
    if not names:
        raise CheckpointError(path, "holds no tensors")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        places = [file for file in files if any(file.prefix + name == twice for name in file.header.tensors)]
        raise CheckpointError(path, f"tensor {twice!r} is in two files, {places[0].name} and {places[1].name}")
    tables = [file.header.tensors for file in files]
    is_one = len(files) == 1 and not files[0].prefix
    tensors = tables[0] if is_one else JoinedTables(names, tables)
    metadata = {key: value for file in files for key, value in file.header.metadata.items()}
    return Checkpoint(path, is_folder, files, tensors, metadata, sidecars, indexes)


def _pipeline_weights(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of a pipeline's weight files and of its indexes, component by component.

    Raises CheckpointError for a component whose only weights are pickled: without it the pipeline would not load.
    """
    names: list[str] = []
    indexes: list[str] = []
    pickles: list[Path] = []
    for component in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        inner, index = _weight_names(component)
        names += [f"{component.name}/{name}" for name in inner]
        indexes += [f"{component.name}/{index}"] if index else []
        pickles += [] if inner else _pickles(component)
    if names and pickles:
        refuse_pickle(pickles[0])
    return names, indexes


def _weight_names(folder: Path, named_index: str | None = None) -> tuple[list[str], str | None]:
    """Return the names of a folder's weight files, in order, and of its index, if it has one; of several the one that
    was named.
    """
    indexes = [named_index] if named_index else _indexes(folder)
    weights = sorted(p.name for p in folder.glob(f"*{WEIGHTS}"))
    standard = [name for name in STANDARD_NAMES if name in weights]
    if len(indexes) > 1:
        raise CheckpointError(
            folder, f"several indexes, none of a standard name: {', '.join(indexes)}", hint="name one of them"
        )
    if indexes:
        shards = dict.fromkeys(shard for _, shard in read_weight_map(folder / indexes[0]))
        for shard in shards:
            refuse_pickle(inside(folder, shard))
            if "/" in shard:
                raise CheckpointError(folder / indexes[0], f"shard {shard} must lie beside its index")
            if not (folder / shard).exists():
                raise CheckpointError(folder / indexes[0], f"shard {shard} is missing", hint="fetch the folder again")
        return sorted(shards, key=_shard_number), indexes[0]
    if standard:
        return standard[:1], None
    if len(weights) > 1:
        raise CheckpointError(
            folder,
            f"{len(weights)} weight files and no index: {', '.join(weights[:4])}{' …' if len(weights) > 4 else ''}",
            hint=f"if each is a model, name them, {folder}/*{WEIGHTS}; if they are shards, add their "
            "model.safetensors.index.json",
        )
    return weights, None


def _indexes(folder: Path) -> list[str]:
    """Return the names of a folder's indexes; of several the one of a standard name, if there is one."""
    found = sorted(p.name for p in folder.glob(f"*{INDEX}"))
    preferred = [f"{name}.index.json" for name in STANDARD_NAMES if f"{name}.index.json" in found]
    return preferred[:1] or found


def _shard_number(shard: str) -> str:
    """What sorts shards by their number; others, e.g. those of a store, named by their bytes, stay as the index lists
    them, which is the same for all models of a store.
    """
    return shard if re.search(r"-[0-9]+-of-[0-9]+\.", shard) else ""


def _check_index(checkpoint: Checkpoint, index_name: str) -> None:
    """An index and its shards must tell the same story: else a merge would lose tensors without a word."""
    index, prefix = checkpoint.path / index_name, component_prefix(index_name)
    unlisted = {name for name in checkpoint.tensors if name.startswith(prefix)}
    for name, shard in read_weight_map(index):
        entry = checkpoint.tensors.get(prefix + name)
        if entry is None or entry.file.name != shard:
            raise CheckpointError(
                index, f"tensor {name!r} is not in {shard}, where the index says it is", hint="fetch the folder again"
            )
        unlisted.discard(prefix + name)
    for name in unlisted:
        file = checkpoint.tensors[name].file.name
        raise CheckpointError(
            index, f"tensor {name!r} is in {file}, the index does not name it", hint="fetch the folder again"
        )


def _prefixes(files: Sequence[WeightFile]) -> set[str]:
    return {"", *(file.prefix for file in files)}


def _weights_beside(folder: Path, files: Sequence[WeightFile], beside: set[str]) -> set[str]:
    """Return the weight files among what lies in the folders that a model is read from, and those of its other
    modules.
    """
    modules = (name for name in module_folders(folder) if f"{name}/" not in _prefixes(files))
    return {name for name in beside if name.endswith(WEIGHTS)}.union(
        f"{place}/{name}" for place in modules for name in weights_in(folder / place)
    )


def _pickles(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)


def _explain_no_weights(folder: Path) -> None:
    for pickle in _pickles(folder):
        refuse_pickle(pickle)
    raise CheckpointError(
        folder, "no .safetensors file in this folder", hint="name a .safetensors file or a model's folder"
    )
