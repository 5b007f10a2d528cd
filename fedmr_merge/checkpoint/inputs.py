"""Inputs as people name them: files, folders and Hub ids `org/name[@revision][/subfolder]`, mixed freely.

Of a model on the Hub the headers are read first, by range requests: models that do not fit together are found before
gigabytes are fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.checkpoint.header import parse_header
from fedmr_merge.checkpoint.source import WEIGHTS, Checkpoint, WeightFile, checkpoint_of, open_checkpoint

if TYPE_CHECKING:
    from fedmr_merge.checkpoint.hub_listing import HubSnapshot

Input = str | Path | Checkpoint


def open_inputs(
    inputs: Sequence[Input], check: Callable[[Sequence[Checkpoint]], None] = lambda _: None
) -> tuple[Checkpoint, ...]:
    """Open checkpoints in the order in which they are named; a Hub id with a glob stands for several.

    `check` gets all of them by their headers alone, and raises where they should not be fetched.
    Raises CheckpointError or HubError.
    """
    found: list[Checkpoint | HubSnapshot] = []
    for item in inputs:
        if isinstance(item, Checkpoint):
            found.append(item)
        elif _is_on_hub(item):
            from fedmr_merge.checkpoint.hub_source import expand_hub

            found += expand_hub(str(item))
        else:
            found.append(open_checkpoint(item))
    if not all(isinstance(item, Checkpoint) for item in found):
        check([item if isinstance(item, Checkpoint) else _by_headers(item) for item in found])
    return tuple(item if isinstance(item, Checkpoint) else _fetch(item) for item in found)


def _is_on_hub(item: str | Path) -> bool:
    """Whether this names a repository: it could, and nothing on this machine, nor a place for it, has the name."""
    from fedmr_merge.checkpoint.hub_listing import parse_hub

    path = Path(item)
    return not path.exists() and not path.parent.is_dir() and parse_hub(str(item)) is not None


def _by_headers(snapshot: HubSnapshot) -> Checkpoint:
    """The model as its headers describe it; its files are not on this machine."""
    from fedmr_merge.checkpoint.hub_source import read_remote_header, weight_files

    is_folder = not snapshot.subfolder.endswith(WEIGHTS)
    files = []
    for name in weight_files(snapshot):
        inner = name.removeprefix(f"{snapshot.subfolder}/") if is_folder else name.rpartition("/")[2]
        place = Path(snapshot.origin) / inner
        header = parse_header(read_remote_header(snapshot, name), place, snapshot.listed(name).size)
        files.append(WeightFile(inner, place, header))
    return replace(checkpoint_of(Path(snapshot.origin), is_folder, tuple(files), (), ()), origin=snapshot.origin)


def _fetch(snapshot: HubSnapshot) -> Checkpoint:
    from fedmr_merge.checkpoint.hub_source import fetch

    return replace(open_checkpoint(fetch(snapshot)), origin=snapshot.origin)
