"""Which files of a folder are the model: decided here alone, for a folder of this machine and of the Hub alike.

Layouts, and what is taken of each:

    model.safetensors                        the one weight file (also adapter_model, diffusion_pytorch_model)
    model.safetensors.index.json             the shards that the index names
    model.safetensors.index.fp16.json        a variant, where there is no other; so for model.fp16.safetensors
    unet/…, text_encoder/…                   a pipeline (diffusers): each component is a folder as above; with a
                                             model_index.json the components are the model, whatever lies beside it
    modules.json, 2_Dense/…                  a sentence-transformers model: the weights beside modules.json, and those
                                             of the folders that it names

Where several could be meant, the one is taken that the library of that name would load: transformers and PEFT prefer
the one file to an index, diffusers prefers the index.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from fedmr_merge.checkpoint.folder import (
    PICKLE_SUFFIXES,
    PIPELINE,
    WEIGHTS,
    is_index,
    leads_out,
    read_json,
    refuse_name,
    refuse_pickle,
)
from fedmr_merge.checkpoint.shard_index import read_weight_map
from fedmr_merge.checkpoint.sidecars import CHAT_TEMPLATES, is_missed, is_sidecar
from fedmr_merge.checkpoint.weight_names import choose_weights, is_weights, shard_order
from fedmr_merge.errors import CheckpointError

MODULES = "modules.json"  #: sentence-transformers' list of a model's modules, some in folders of their own
_ROUTER = "router_config.json"  #: of a module that holds modules in folders of its own


class Listing(Protocol):
    """What a folder holds. Names have `/` between their parts; `""` is the folder itself."""

    @property
    def place(self) -> Path:
        """What errors call the folder."""

    @property
    def carries_code(self) -> bool:
        """Whether the model's own Python files may be copied."""

    def files(self, folder: str) -> Sequence[str]:
        """Return the names of the files in a folder, not of those in the folders in it."""

    def folders(self, folder: str) -> Sequence[str]:
        """Return the names of the folders in a folder."""

    def unusable(self, folder: str) -> Mapping[str, str]:
        """Return what in a folder stands for another folder and cannot be one, with the reason."""

    def local(self, name: str) -> Path:
        """Return the path on this machine of a small file."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The files of a folder that are the model; all names are relative to the folder, with `/`."""

    weights: tuple[str, ...]  #: in the order in which they are read
    indexes: tuple[str, ...] = ()  #: shard indexes that name them
    sidecars: tuple[str, ...] = ()  #: other files that belong to the model
    left_out: tuple[str, ...] = ()  #: weights and indexes that lie beside those of the model and are not part of it
    left_behind: tuple[str, ...] = ()  #: other files that are not copied and may be missed
    named_index: str | None = None  #: the index that says which model of the folder is meant, where one must say it


def component_prefix(name: str) -> str:
    """Return what stands before the names of a file's tensors in the checkpoint: the component and a slash, or
    nothing.
    """
    folder = name.rpartition("/")[0]
    return f"{folder}/" if folder else ""


def select(listing: Listing, named_index: str | None = None) -> Selection:
    """Decide which files of a folder are the model, or the model of the index that is named.

    Raises CheckpointError with the reason: no weights, or pickled ones alone; several models and nothing that says
    which; an index that is damaged, names what is not there or leads out of the folder.
    """
    names = listing.files("")
    is_pipeline = PIPELINE in names
    if named_index and not is_pipeline:
        with contextlib.suppress(CheckpointError):
            if choose_weights(listing.place, names) == named_index:
                named_index = None  # this index is chosen without being named, too
    modules = _module_folders(listing) if MODULES in names and not is_pipeline else []
    if named_index:
        parts = [_part(listing, "", named_index), *_parts(listing, modules)]
    elif is_pipeline:
        parts = _parts(listing, _components(listing)) or _parts(listing, [""])
    elif modules:
        parts = _parts(listing, ["", *modules])
    else:
        parts = _parts(listing, [""]) or _parts(listing, _components(listing))
    if not parts:
        _explain_no_weights(listing)
    return _with_what_lies_beside(listing, parts, modules, named_index)


_Part = tuple[tuple[str, ...], str | None]  #: weight files of one folder, and the index that names them


def _with_what_lies_beside(
    listing: Listing, parts: Sequence[_Part], modules: Sequence[str], named_index: str | None
) -> Selection:
    weights = tuple(name for files, _ in parts for name in files)
    indexes = tuple(index for _, index in parts if index)
    own = {component_prefix(name).rstrip("/") for name in weights}
    beside = [_join(folder, name) for folder in sorted({"", *own}) for name in listing.files(folder)]
    chosen = {*weights, *indexes}
    is_deep = not modules and "" not in own
    code = [name for name in beside if name.endswith(".py") and not listing.carries_code]
    return Selection(
        weights,
        indexes,
        tuple(sorted(_sidecars(listing, modules, is_deep))),
        tuple(sorted(name for name in beside if is_weights(name) and name not in chosen)),
        tuple(sorted({*code, *(name for name in beside if is_missed(name.rpartition("/")[2]))})),
        named_index,
    )


def _components(listing: Listing) -> Sequence[str]:
    """Return the folders that may be a pipeline's components. Raises CheckpointError where one cannot be used."""
    _refuse_unusable(listing, "", _named_components(listing))
    return listing.folders("")


def _parts(listing: Listing, folders: Sequence[str]) -> list[_Part]:
    """Return the weights of these folders, of each that has some.

    Raises CheckpointError for a folder within the model whose only weights are pickled: without it the model would not
    load.
    """
    chosen = {folder: choose_weights(listing.place / folder, listing.files(folder)) for folder in folders}
    found = [_part(listing, folder, name) for folder, name in chosen.items() if name]
    lost = [
        (folder, name)
        for folder, choice in chosen.items()
        if folder and not choice
        for name in _pickles(listing, folder)
    ]
    if found and lost:
        refuse_pickle(listing.place / _join(*lost[0]))
    return found


def _part(listing: Listing, folder: str, chosen: str) -> _Part:
    """Return the weight files that were chosen in a folder, by the name of the one or of their index."""
    if not is_index(chosen):
        return (_join(folder, chosen),), None
    index, there = _join(folder, chosen), set(listing.files(folder))
    place = listing.place / index
    shards = dict.fromkeys(read_weight_map(listing.local(index), place).values())
    for shard in shards:
        refuse_name(place, shard)
        refuse_pickle(listing.place / folder / shard)
        shown = shard if len(shard) <= 80 else f"{shard[:80]}…"
        if "/" in shard:
            raise CheckpointError(place, f"shard {shown} must lie beside its index", hint="fetch the folder again")
        if not shard.endswith(WEIGHTS):
            raise CheckpointError(place, f"shard {shown} is not a weight file", hint="fetch the folder again")
        if shard not in there:
            raise CheckpointError(place, f"shard {shown} is missing", hint="fetch the folder again")
    return tuple(_join(folder, shard) for shard in sorted(shards, key=shard_order)), index


def _module_folders(listing: Listing) -> list[str]:
    """Return the folders that a modules.json names and that are there, and those that a router among them names.

    Raises CheckpointError for a module whose folder cannot be used or lies outside the model.
    """
    content = read_json(listing.local(MODULES), listing.place / MODULES)
    listed = [module.get("path") for module in content if isinstance(module, dict)] if isinstance(content, list) else []
    paths = dict.fromkeys(path.rstrip("/") for path in listed if isinstance(path, str))
    for path in filter(leads_out, filter(None, paths)):
        raise CheckpointError(
            listing.place / MODULES, f"a module lies outside the model, in {path[:80]!r}", hint="fetch the model again"
        )
    _refuse_unusable(listing, "", {path.partition("/")[0] for path in paths})
    folders = dict.fromkeys(folder for path in paths for folder in (path, *_routed(listing, path)))
    return [folder for folder in folders if folder and _is_there(listing, folder)]


def _routed(listing: Listing, folder: str) -> list[str]:
    """Return the folders of the modules that a router chooses among."""
    if (folder and not _is_there(listing, folder)) or _ROUTER not in listing.files(folder):
        return []
    name = _join(folder, _ROUTER)
    content = read_json(listing.local(name), listing.place / name)
    types = content.get("types") if isinstance(content, dict) else None
    return [_join(folder, inner) for inner in types if not leads_out(inner)] if isinstance(types, dict) else []


def _is_there(listing: Listing, folder: str) -> bool:
    above, _, name = folder.rpartition("/")
    return (not above or _is_there(listing, above)) and name in listing.folders(above)


def _named_components(listing: Listing) -> Collection[str] | None:
    """Return the names of a pipeline's components, None where nothing says them."""
    if PIPELINE not in listing.files(""):
        return None
    content = read_json(listing.local(PIPELINE), listing.place / PIPELINE)
    return content.keys() if isinstance(content, dict) else None


def _sidecars(listing: Listing, modules: Sequence[str], is_deep: bool) -> Iterator[str]:
    """Yield the files that are copied: those beside the weights; those of a pipeline, `is_deep`, in all its folders."""
    named = _named_components(listing) if is_deep else None
    within = ["", *modules]
    seen = set()
    while within:
        folder = within.pop()
        if folder in seen:
            continue
        seen.add(folder)
        if is_deep:
            _refuse_unusable(listing, folder, named)
        if is_deep or folder:  # a module's folder is the module's as a whole
            within += [_join(folder, name) for name in listing.folders(folder)]
        elif CHAT_TEMPLATES in listing.folders(folder):
            within.append(CHAT_TEMPLATES)
        for name in listing.files(folder):
            if is_sidecar(name) and (listing.carries_code or not name.endswith(".py")):
                yield _join(folder, name)


def _refuse_unusable(listing: Listing, folder: str, named: Collection[str] | None) -> None:
    """Raise CheckpointError for what stands for a folder of the model and is not one; without names, for any."""
    for name, reason in listing.unusable(folder).items():
        if named is None or name in named:
            raise CheckpointError(
                listing.place / _join(folder, name), reason, hint="copy the folder with what its links lead to"
            )


def _pickles(listing: Listing, folder: str) -> list[str]:
    return sorted(name for name in listing.files(folder) if name.endswith(PICKLE_SUFFIXES))


def _explain_no_weights(listing: Listing) -> NoReturn:
    for folder in ("", *listing.folders("")):
        for pickle in _pickles(listing, folder):
            refuse_pickle(listing.place / _join(folder, pickle))
    raise CheckpointError(
        listing.place, "no .safetensors file in this folder", hint="name a .safetensors file or a model's folder"
    )


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
