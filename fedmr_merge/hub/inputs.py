"""Inputs as people name them: files, folders and Hub ids `org/name[@revision][/subfolder]`, mixed freely.

Of a model on the Hub the headers are read first, by range requests: models that do not fit together are found before
gigabytes are fetched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.checkpoint.folder import PIPELINE
from fedmr_merge.checkpoint.header import parse_header
from fedmr_merge.checkpoint.open import Checkpoint, WeightFile, checkpoint_of, open_checkpoint, open_selection
from fedmr_merge.checkpoint.selection import MODULES, Selection
from fedmr_merge.checkpoint.writer import Progress
from fedmr_merge.errors import CheckpointError, HubError, OutputError

if TYPE_CHECKING:
    from fedmr_merge.hub.client import Hub
    from fedmr_merge.hub.listing import HubSnapshot

#: What is fetched beside the headers to find out whether models fit together.
CONFIGS = ("config.json", PIPELINE, "adapter_config.json", MODULES)

Input = str | Path | Checkpoint


@dataclass(frozen=True, slots=True)
class _Remote:
    """A model on the Hub, and which files of its folder are the model."""

    hub: Hub
    snapshot: HubSnapshot
    selection: Selection


def open_inputs(
    inputs: Input | Sequence[Input],
    check: Callable[[tuple[Checkpoint, ...]], object] = lambda _: None,
    *,
    headers_only: bool = False,
    configs: Collection[str] = (),
    progress: Progress | None = None,
) -> tuple[Checkpoint, ...]:
    """Open checkpoints, or a single one, in the order in which they are named; a Hub id with a glob stands for several.

    Where one is on the Hub `check` gets all of them by their headers and configuration alone, and raises where they
    should not be fetched; `configs` names further JSON files that it reads. With `headers_only` nothing more of a model
    on the Hub is fetched. `progress` is called with the number of bytes just fetched. Raises CheckpointError or
    HubError.
    """
    named_inputs = [inputs] if isinstance(inputs, str | Path | Checkpoint) else inputs
    with contextlib.ExitStack() as stack:
        hub: Hub | None = None
        found: list[Checkpoint | _Remote] = []
        for item in named_inputs:
            if isinstance(item, Checkpoint):
                found.append(item)
            elif is_on_hub(item):
                hub = hub or _open(stack, progress)
                found += _expand(hub, str(item))
            else:
                found.append(_one_model(open_checkpoint(item)))
        if hub is not None:
            named = {*CONFIGS, *configs}
            by_headers = tuple(_by_headers(item, named) if isinstance(item, _Remote) else item for item in found)
            check(by_headers)
            if headers_only:
                return by_headers
        return tuple(_fetch(item) if isinstance(item, _Remote) else item for item in found)


def _open(stack: contextlib.ExitStack, progress: Progress | None) -> Hub:
    from fedmr_merge.hub.client import open_hub  # imports huggingface_hub

    return stack.enter_context(open_hub(progress=progress))


def _expand(hub: Hub, item: str) -> list[_Remote]:
    from fedmr_merge.hub.snapshot import expand_hub, select_files

    try:
        snapshots = expand_hub(hub, item)
    except HubError as error:
        # Most of the time it is a path with a typing error.
        raise type(error)(f"{item}: no such file or folder, and on the Hub: {error}", hint=error.hint) from error
    return [_Remote(hub, snapshot, select_files(hub, snapshot)) for snapshot in snapshots]


def is_on_hub(item: str | Path) -> bool:
    """Return whether this names a repository: it could, and neither it nor its parent folder is on this machine."""
    from fedmr_merge.hub.listing import parse_hub

    path = Path(item)
    return not path.exists() and not path.parent.is_dir() and parse_hub(str(item)) is not None


def public_name(item: str) -> str:
    """Return the name of an input that says nothing of this machine: a Hub id as it is, of a path the last part."""
    from fedmr_merge.hub.listing import parse_hub

    return item if parse_hub(item) and not Path(item).exists() else Path(item).name


def public_model_name(name: str) -> str:
    """Return the name of a recipe's model without the folders of this machine, e.g. `transformers:bert`."""
    library, _, source = name.partition(":")
    return f"{library}:{public_name(source)}" if library == "transformers" else name


def lies_in(place: Path, folder: Path) -> bool:
    """Return whether a path is a folder, or lies in it, once all links are followed."""
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))


def refuse_inside(place: Path, checkpoints: Sequence[Checkpoint], option: str) -> None:
    """Raise OutputError when what is to be written, as `option` names it, would lie in the folder of an input."""
    for checkpoint in checkpoints:
        if checkpoint.is_folder and lies_in(place, checkpoint.path):
            raise OutputError(
                place, f"lies in an input, {checkpoint.location}", hint=f"choose another place with {option}"
            )


def refuse_twice(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise CheckpointError when one model was named twice, however.

    It is a mistake, as of two globs that overlap: a model that is recombined with itself does not change, and in a mean
    a model's weight says how much it counts.
    """
    slots: dict[tuple[str, ...], int] = {}
    for slot, checkpoint in enumerate(checkpoints):
        first = slots.setdefault(_opened_files(checkpoint), slot)
        if first != slot:
            raise CheckpointError(
                checkpoint.location,
                f"named twice, as model {first} and model {slot}",
                hint="name each model once; `average --weights` lets one count for more than another",
            )


def _opened_files(checkpoint: Checkpoint) -> tuple[str, ...]:
    # A model of the Hub is identified by its place there: the cache has one copy of files of the same bytes.
    if checkpoint.origin and not checkpoint.is_folder:
        return (checkpoint.origin,)
    if checkpoint.origin:
        return tuple(f"{checkpoint.origin}/{file.name}" for file in checkpoint.files)
    folder = (checkpoint.path if checkpoint.is_folder else checkpoint.path.parent).resolve()
    places = (folder / file.name for file in checkpoint.files)
    return tuple(str(place.resolve() if place.is_symlink() else place) for place in places)


def _by_headers(remote: _Remote, named: Collection[str]) -> Checkpoint:
    """Return the model as its headers and its configuration describe it; its weights are not on this machine."""
    from fedmr_merge.hub.snapshot import fetch_files, read_remote_header

    hub, snapshot, selection = remote.hub, remote.snapshot, remote.selection
    place = Path(snapshot.origin)
    files = []
    for name in selection.weights:
        listed = snapshot.outer(name)
        path = place if snapshot.is_file else place / name
        header = parse_header(read_remote_header(hub, snapshot, listed), path, snapshot.listed(listed).size)
        files.append(WeightFile(name, path, header))
    if snapshot.is_file:
        return _of_hub(replace(checkpoint_of(place, tuple(files)), is_remote=True), snapshot)
    configs = tuple(name for name in selection.sidecars if name.rpartition("/")[2] in named)
    folder = fetch_files(hub, snapshot, map(snapshot.outer, (*configs, *selection.indexes)))
    checkpoint = checkpoint_of(folder, tuple(files), replace(selection, sidecars=configs))
    nbytes = sum(snapshot.listed(snapshot.outer(name)).size for name in selection.sidecars)
    return _one_model(_of_hub(replace(checkpoint, is_remote=True, sidecar_bytes=nbytes), snapshot))


def _fetch(remote: _Remote) -> Checkpoint:
    from fedmr_merge.hub.snapshot import fetch_model

    place = fetch_model(remote.hub, remote.snapshot, remote.selection)
    is_file = remote.snapshot.is_file
    checkpoint = open_checkpoint(place) if is_file else open_selection(place, remote.selection)
    return _of_hub(checkpoint, remote.snapshot)


def _of_hub(checkpoint: Checkpoint, snapshot: HubSnapshot) -> Checkpoint:
    """Add what only the listing of the repository says."""
    return replace(
        checkpoint, origin=snapshot.origin, licence=snapshot.licence, card=snapshot.card, card_read=snapshot.card_read
    )


def _one_model(checkpoint: Checkpoint) -> Checkpoint:
    """Raise CheckpointError where a folder holds models to merge, which have the same tensors, and is not one model of
    several components.
    """
    parts: dict[str, set[str]] = {}
    for file in checkpoint.files:
        parts.setdefault(file.prefix, set()).update(file.header.tensors)
    is_declared = not {PIPELINE, MODULES}.isdisjoint(checkpoint.sidecars)
    if len(parts) > 1 and not is_declared and len({*map(frozenset, parts.values())}) == 1:
        names, source = [prefix.rstrip("/") for prefix in parts], checkpoint.location
        shown = f"{', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
        models = f"{source}/{'slot-*' if names[-1].startswith('slot-') else '*'}"
        hint = f"name them, {models}, or one of them; a pipeline of components has a model_index.json"
        raise CheckpointError(source, f"holds {len(names)} models of the same tensors: {shown}", hint=hint)
    return checkpoint
