"""Inputs as people name them: files, folders and Hub ids `org/name[@revision][/subfolder]`, mixed freely.

Of a model on the Hub the headers are read first, by range requests: models that do not fit together are found before
gigabytes are fetched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.checkpoint.folder import INDEX, PIPELINE, WEIGHTS
from fedmr_merge.checkpoint.header import parse_header
from fedmr_merge.checkpoint.open import Checkpoint, WeightFile, checkpoint_of, component_prefix, open_checkpoint
from fedmr_merge.checkpoint.sidecars import MODULES, named_folders
from fedmr_merge.checkpoint.writer import Progress
from fedmr_merge.errors import CheckpointError, HubError, OutputError

if TYPE_CHECKING:
    from fedmr_merge.hub.listing import HubSnapshot

#: What is fetched beside the headers to tell whether models fit together.
CONFIGS = ("config.json", PIPELINE, "adapter_config.json", MODULES)

Input = str | Path | Checkpoint


def open_inputs(
    inputs: Sequence[Input],
    check: Callable[[tuple[Checkpoint, ...]], object] = lambda _: None,
    *,
    headers_only: bool = False,
    configs: Collection[str] = (),
    progress: Progress | None = None,
) -> tuple[Checkpoint, ...]:
    """Open checkpoints in the order in which they are named; a Hub id with a glob stands for several.

    Where one is on the Hub `check` gets all of them by their headers and configuration alone, and raises where they
    should not be fetched; `configs` names further JSON files that it reads. With `headers_only` nothing more of a model
    on the Hub is fetched. `progress` is called with the number of bytes just fetched. Raises CheckpointError or
    HubError.
    """
    found: list[Checkpoint | HubSnapshot] = []
    for item in inputs:
        if isinstance(item, Checkpoint):
            found.append(item)
        elif is_on_hub(item):
            found += _expand(str(item))
        else:
            found.append(_one_model(open_checkpoint(item)))
    if not all(isinstance(item, Checkpoint) for item in found):
        named = {*CONFIGS, *configs}
        by_headers = tuple(item if isinstance(item, Checkpoint) else _by_headers(item, named) for item in found)
        check(by_headers)
        if headers_only:
            return by_headers
    return tuple(item if isinstance(item, Checkpoint) else _fetch(item, progress) for item in found)


def _expand(item: str) -> Sequence[HubSnapshot]:
    from fedmr_merge.hub.snapshot import expand_hub

    try:
        return expand_hub(item)
    except HubError as error:
        # Most of the time it is a path with a typing error.
        raise type(error)(f"{item}: no such file or folder, and on the Hub: {error}", hint=error.hint) from error


def is_on_hub(item: str | Path) -> bool:
    """Whether this names a repository: it could, and nothing on this machine, nor a place for it, has the name."""
    from fedmr_merge.hub.listing import parse_hub

    path = Path(item)
    return not path.exists() and not path.parent.is_dir() and parse_hub(str(item)) is not None


def lies_in(place: Path, folder: Path) -> bool:
    """Whether a path is a folder's, or would be in it, links followed as far as they lead."""
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))


def refuse_inside(place: Path, checkpoints: Sequence[Checkpoint], option: str) -> None:
    """Raise OutputError when what is to be written, as `option` names it, would lie in the folder of an input."""
    for checkpoint in checkpoints:
        if checkpoint.is_folder and lies_in(place, checkpoint.path):
            raise OutputError(
                place, f"lies in an input, {checkpoint.source}", hint=f"choose another place with {option}"
            )


def refuse_twice(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise CheckpointError when one model was named twice, however.

    It is a slip, as of two globs that overlap: recombined with itself a model stays what it is, and in a mean what it
    counts for is said by its weight.
    """
    slots: dict[tuple[str, ...], int] = {}
    for slot, checkpoint in enumerate(checkpoints):
        first = slots.setdefault(_opened_files(checkpoint), slot)
        if first != slot:
            raise CheckpointError(
                checkpoint.source,
                f"named twice, as model {first} and model {slot}",
                hint="name each model once; `average --weights` lets one count for more than another",
            )


def _opened_files(checkpoint: Checkpoint) -> tuple[str, ...]:
    # What comes from the Hub is told by its place there: the cache has one copy of files of the same bytes.
    if checkpoint.origin and not checkpoint.is_folder:
        return (checkpoint.origin,)
    if checkpoint.origin:
        return tuple(f"{checkpoint.origin}/{file.name}" for file in checkpoint.files)
    folder = (checkpoint.path if checkpoint.is_folder else checkpoint.path.parent).resolve()
    places = (folder / file.name for file in checkpoint.files)
    return tuple(str(place.resolve() if place.is_symlink() else place) for place in places)


def _by_headers(snapshot: HubSnapshot, named: Collection[str]) -> Checkpoint:
    """The model as its headers and its configuration describe it; its weights are not on this machine."""
    from fedmr_merge.hub.snapshot import fetch, model_files, read_remote_header

    is_folder = not snapshot.subfolder.endswith(WEIGHTS)
    files = []
    listed = model_files(snapshot)
    for name in listed:
        if not name.endswith(WEIGHTS):
            continue
        inner = name.removeprefix(f"{snapshot.subfolder}/") if is_folder else name.rpartition("/")[2]
        place = Path(snapshot.origin) / inner
        header = parse_header(read_remote_header(snapshot, name), place, snapshot.listed(name).size)
        files.append(WeightFile(inner, place, header))
    configs = [name for name in listed if is_folder and name.rpartition("/")[2] in named]
    folder = fetch(snapshot, configs) if configs else Path(snapshot.origin)
    sidecars = tuple(name.removeprefix(f"{snapshot.subfolder}/") for name in configs)
    checkpoint = checkpoint_of(folder, is_folder, tuple(files), sidecars, ())
    others = sum(snapshot.listed(name).size for name in listed if is_folder and not name.endswith((WEIGHTS, INDEX)))
    return _one_model(replace(_of_snapshot(checkpoint, snapshot), is_remote=True, sidecar_bytes=others))


def _one_model(checkpoint: Checkpoint) -> Checkpoint:
    """Raise CheckpointError where a folder holds models to merge, which have the same tensors, and no pipeline."""
    parts: dict[str, set[str]] = {}
    for file in checkpoint.files:
        parts.setdefault(file.prefix, set()).update(file.header.tensors)
    if len(parts) > 1 and PIPELINE not in checkpoint.sidecars and len({*map(frozenset, parts.values())}) == 1:
        names, source = [prefix.rstrip("/") for prefix in parts], checkpoint.source
        shown = f"{', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
        models = f"{source}/{'slot-*' if names[-1].startswith('slot-') else '*'}"
        hint = f"name them, {models}, or one of them; a pipeline of components has a model_index.json"
        raise CheckpointError(source, f"holds {len(names)} models of the same tensors: {shown}", hint=hint)
    return checkpoint


def _fetch(snapshot: HubSnapshot, progress: Progress | None) -> Checkpoint:
    from fedmr_merge.hub.snapshot import fetch

    return _of_snapshot(open_checkpoint(fetch(snapshot, progress=progress)), snapshot)


def _of_snapshot(checkpoint: Checkpoint, snapshot: HubSnapshot) -> Checkpoint:
    """Add what only the listing of the repository tells."""
    place = f"{snapshot.subfolder}/" if snapshot.subfolder else ""
    inner = (name.removeprefix(place) for name in snapshot.files if checkpoint.is_folder and name.endswith(WEIGHTS))
    read = {file.name for file in checkpoint.files}
    modules = [f"{name}/" for name in named_folders(checkpoint.read_json(MODULES))]
    own = {"", *(file.prefix for file in checkpoint.files)}
    left_out = tuple(name for name in inner if name not in read and component_prefix(name) in {*own, *modules})
    around = (name.removeprefix(place) for name in snapshot.left_behind if checkpoint.is_folder)
    left_behind = tuple(name for name in around if component_prefix(name) in own)
    return replace(
        checkpoint, origin=snapshot.origin, licence=snapshot.licence, left_out=left_out, left_behind=left_behind
    )
