"""The inputs of a recombination or an average, as its lineage describes them: enough to write them again."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmr_merge.checkpoint.hashing import file_hash
from fedmr_merge.checkpoint.header import Header, pack, parse_header, reading, unpack
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.selection import component_prefix
from fedmr_merge.checkpoint.tensor_table import JoinedTables, TensorEntry
from fedmr_merge.errors import CheckpointError

if TYPE_CHECKING:
    from fedmr_merge.hub.listing import HubRef


@dataclass(frozen=True)
class ParentFile:
    """One weight file of a parent: enough to write it again."""

    name: str
    header: Header

    @property
    def prefix(self) -> str:
        return component_prefix(self.name)


@dataclass(frozen=True)
class Parent:
    """One model that went in."""

    slot: int
    path: str  #: relative to the lineage file, or `org/name@commit` on the Hub
    is_folder: bool
    files: tuple[ParentFile, ...]
    indexes: Mapping[str, bytes]  #: shard index → its content, compressed
    sidecars: Mapping[str, str]  #: its other files → their SHA-256
    card: Mapping[str, Any] | None = None  #: what its card on the Hub said, None where that was not recorded
    licence: str | None = None  #: the one its card on the Hub stated, if any
    licence_recorded: bool = False  #: whether a `licence` of None means that its card stated none

    @cached_property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Its tensors, as its headers list them."""
        tables = [file.header.tensors for file in self.files]
        return JoinedTables((file.prefix + name for file in self.files for name in file.header.tensors), tables)

    @cached_property
    def hub(self) -> HubRef | None:
        """Its name on the Hub; None where it was a file or a folder."""
        from fedmr_merge.hub.listing import parse_origin

        return parse_origin(self.path)

    def place(self, folder: Path) -> Path:
        """Return where it is, as people write it: `b` for `a/../b`, unless a link makes that another place.

        `folder` is the folder of the lineage. A model of the Hub is in the cache, if it is on this machine at all.
        """
        if self.hub is not None:
            from fedmr_merge.hub.snapshot import cached_place

            return cached_place(self.hub)
        short, real = Path(os.path.normpath(folder / self.path)), _real_place(folder / self.path)
        return short if _real_place(short) == real else real

    def is_there(self, folder: Path) -> bool:
        """Whether it can be read; the cache may hold only a part of a repository."""
        place = self.place(folder)
        if self.hub is None or not self.is_folder:
            return os.access(place, os.F_OK)  # False also where a folder above may not be entered
        return all(os.access(place / name, os.F_OK) for name in (*self.indexes, *(file.name for file in self.files)))


def recorded_place(checkpoint: Checkpoint, out: Path) -> str:
    """Return what a lineage in the folder `out` calls a parent. Raises CheckpointError where that is not Unicode."""
    place = checkpoint.origin or os.path.relpath(_real_place(checkpoint.place), _real_place(out))
    try:
        place.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CheckpointError(
            checkpoint.path,
            "its path is not UTF-8, and a lineage could not name it",
            hint="rename it, or name it by a link whose path is UTF-8",
        ) from error
    return place


def describe_parent(slot: int, checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
    """Return the JSON of one parent.

    Its headers and indexes are kept, compressed, so that `undo` writes them again byte for byte. Its other files are
    in the outputs, where `undo` looks for them by their SHA-256.
    """
    licence = {"license": checkpoint.licence} if checkpoint.origin and checkpoint.card_read else {}
    card = {"card": dict(checkpoint.card)} if checkpoint.card else {}
    return {
        "slot": slot,
        "path": recorded_place(checkpoint, out),
        **licence,
        **card,
        "is_folder": checkpoint.is_folder,
        "files": [
            {
                "name": file.name,
                "bytes": file.header.file_bytes,
                "header": _as_text(file.header.packed),
            }
            for file in checkpoint.files
        ],
        "indexes": {name: _pack_file(checkpoint.path / name) for name in checkpoint.indexes},
        "sidecars": {name: hash_file(checkpoint.path / name) for name in checkpoint.sidecars},
    }


def _real_place(path: Path) -> Path:
    """Return a path without links above it, so that `..` leads where it seems to; its own name is kept, link or not."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _pack_file(path: Path) -> str:
    with reading(path):
        return _as_text(pack(path.read_bytes()))


def _as_text(packed: bytes) -> str:
    return base64.b64encode(packed).decode("ascii")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file. Raises CheckpointError when it cannot be read."""
    with reading(path):
        return file_hash(path, hashlib.sha256())


class Unpacking:
    """Unpacks what a lineage holds compressed, up to a bound: a file of a megabyte must not fill the memory.

    Headers and indexes are a tenth of their size when they are compressed, and the lineage lists every tensor besides.
    """

    _BASE_BYTES = 16 << 20
    _RATIO = 64

    def __init__(self, lineage_bytes: int) -> None:
        self._left = self._BASE_BYTES + self._RATIO * lineage_bytes

    def content(self, packed: bytes) -> bytes:
        """Return the unpacked content. Raises ValueError beyond the bound and where it is damaged."""
        content = unpack(packed, self._left)
        self._left -= len(content)
        return content


def read_parent(content: Mapping[str, Any], unpacking: Unpacking) -> Parent:
    """Read what `describe_parent` gave. Raises an error of any kind where it is damaged."""
    card, licence = content.get("card"), content.get("license")
    if not isinstance(licence, str | None):
        raise ValueError(f"{licence!r:.40} is not the name of a licence")
    indexes = {name: base64.b64decode(text) for name, text in content["indexes"].items()}
    for packed in indexes.values():
        unpacking.content(packed)  # `undo` writes them: damage must be found before
    return Parent(
        slot=int(content["slot"]),
        path=str(content["path"]),
        is_folder=bool(content["is_folder"]),
        files=tuple(_read_file(file, unpacking) for file in content["files"]),
        indexes=indexes,
        sidecars=dict(content["sidecars"]),
        card=card if isinstance(card, dict) else None,
        licence=licence,
        licence_recorded="license" in content,
    )


def _read_file(content: Mapping[str, Any], unpacking: Unpacking) -> ParentFile:
    name, nbytes = str(content["name"]), content["bytes"]
    if type(nbytes) is not int or not 0 <= nbytes < 1 << 63:
        raise ValueError(f"{nbytes!r:.40} is not a number of bytes")
    return ParentFile(name, parse_header(unpacking.content(base64.b64decode(content["header"])), Path(name), nbytes))
