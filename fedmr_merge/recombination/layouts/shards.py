"""A store: a folder of content-addressed shards, one for each layer group of each model, that models link to.

    .fedmr-merge-store/store.json                  marks the folder as a store
    .fedmr-merge-store/ab/abcd….safetensors        one layer group of one model, read-only
    out/slot-00/model-abcd….safetensors            the same file (hard link), named by
    out/slot-00/model.safetensors.index.json       a plain index, as every library reads it

A file's name is the SHA-256 of its header, and the header holds the SHA-256 of every tensor: the name vouches for all
the bytes. Recombining models that are in this layout already only makes links, so that a round writes next to nothing
whatever the size of the models.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedmr_merge.checkpoint.copying import Segment, SourceWatch, assemble, copy_file
from fedmr_merge.checkpoint.hashing import hash_tensors
from fedmr_merge.checkpoint.header import build_header, read_header
from fedmr_merge.checkpoint.metadata import HASHES_KEY, LAYERS_KEY, read_hashes
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.checkpoint.writer import Progress, dumps, refuse_unwritable, sync, write_json
from fedmr_merge.errors import CheckpointError, OutputError
from fedmr_merge.layers.layer_rule import trainer_layers
from fedmr_merge.recombination.layouts.base import StoreReport

_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
_STAGING = ".staging-"
_MARK = "store.json"
_FORMAT_VERSION = 1
_WHAT_IS_A_STORE = "a store is the folder .fedmr-merge-store beside an output"
_WHAT_IS_IN_A_MARK = (
    f'in a store of this version it holds {{"format_version": {_FORMAT_VERSION}}}: write that if it was damaged, '
    "or name another folder"
)
_ANOTHER_PLACE = "choose another place with --store"
_SHARD = re.compile(r"(?P<folder>[0-9a-f]{2})/(?P=folder)[0-9a-f]{62}\.safetensors")


@dataclass(frozen=True)
class Shard:
    """One layer group of one model, as a content-addressed file."""

    path: Path
    address: str
    hashes: Mapping[str, str]


@contextlib.contextmanager
def using(store: Path, *, alone: bool = False) -> Iterator[None]:
    """Hold a store: with others for writing, alone for removing. What killed commands left in it is removed."""
    descriptor = os.open(store, os.O_RDONLY)
    try:
        if alone or _leftovers(store):
            with contextlib.nullcontext() if alone else contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # then nobody is writing
                for leftover in _leftovers(store):
                    shutil.rmtree(leftover, ignore_errors=True)
        if not alone:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise OutputError(store, "the store is in use", hint="try again when the other command is done") from error
    finally:
        os.close(descriptor)


def _leftovers(store: Path) -> list[Path]:
    return list(store.glob(f"{_STAGING}*"))


def make_store(store: Path) -> None:
    """Make a folder a store, if it is not one already. Raises OutputError when it cannot be written to."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        if not _is_store(store):
            write_json(store / _MARK, {"format_version": _FORMAT_VERSION})
    except OSError as error:
        raise OutputError(store, f"cannot be written: {error.strerror}", hint=_ANOTHER_PLACE) from error


def check_store(store: Path) -> None:
    """Raise OutputError where a folder is not a store and cannot become one. Nothing is written."""
    if _is_store(store):
        return
    try:
        if store.is_dir() and any(not path.name.startswith(f".{_MARK}") for path in store.iterdir()):
            raise OutputError(store, f"it is not a store, and not empty: it has no {_MARK}", hint=_ANOTHER_PLACE)
    except OSError as error:
        raise OutputError(store, f"cannot be read: {error.strerror}", hint=_ANOTHER_PLACE) from error
    refuse_unwritable(store / _MARK, "--store")


def _is_store(folder: Path) -> bool:
    """Whether a folder is marked as a store. Raises OutputError where it is one of another version, or unreadable."""
    mark = folder / _MARK
    try:
        content = json.loads(mark.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(
            mark, f"cannot be read: {getattr(error, 'strerror', None) or error}", hint=_WHAT_IS_IN_A_MARK
        ) from error
    if not isinstance(content, dict) or content.get("format_version") != _FORMAT_VERSION:
        raise OutputError(mark, f"not the mark of a store of format version {_FORMAT_VERSION}", hint=_WHAT_IS_IN_A_MARK)
    return True


def collect_garbage(store: Path) -> tuple[int, int]:
    """Remove the shards of a store that no output links to any more. Returns how many shards and bytes were
    removed.

    Raises OutputError when the folder is not a store, or is being written to.
    """
    if not store.is_dir():
        raise OutputError(store, "there is no such store", hint=_WHAT_IS_A_STORE)
    if not _is_store(store):
        raise OutputError(store, f"it is not a store: it has no {_MARK}; nothing was removed", hint=_WHAT_IS_A_STORE)
    shards, nbytes = 0, 0
    try:
        with using(store, alone=True):
            for leftover in store.glob(f".{_MARK}.*"):
                leftover.unlink(missing_ok=True)
            for path in store.glob("??/*.safetensors"):
                stat = path.lstat()
                if stat.st_nlink == 1 and _SHARD.fullmatch(path.relative_to(store).as_posix()):
                    path.unlink()
                    shards, nbytes = shards + 1, nbytes + stat.st_size
    except OSError as error:
        raise OutputError(
            store,
            f"after {shards} shards no more could be removed: {error.strerror}",
            hint="what outputs link to is untouched; the same command removes the rest",
        ) from error
    return shards, nbytes


def held_shard(parent: Checkpoint, prefix: str, members: Sequence[str]) -> Shard | None:
    """Return the file of a parent that is the shard of exactly these tensors, None where there is no such file.

    Raises CheckpointError when its name does not vouch for its header, or the header does not hold their SHA-256.
    """
    file = parent.files_by_path[parent.tensors[prefix + members[0]].file]
    address = file.path.stem.rpartition("-")[2]
    if len(address) != 64 or file.header.tensors.keys() != set(members):
        return None
    if HASHES_KEY not in file.header.metadata:
        return None
    if address != hashlib.sha256(file.header.raw).hexdigest():
        raise CheckpointError(file.path, "its name is not the SHA-256 of its header: the shard was changed")
    return Shard(file.path, address, read_hashes(file))


def _is_sound(path: Path, header: bytes, hashes: Mapping[str, str]) -> bool:
    """Whether a shard of the store is there, holds what its name says, and cannot be changed in place."""
    try:
        found = read_header(path)
        return found.raw == header and is_read_only(path) and hash_tensors(found.tensors, SourceWatch([])) == hashes
    except CheckpointError:
        return False


def is_read_only(path: Path) -> bool:
    """Whether nobody has the permission to write to a file."""
    return path.stat().st_mode & 0o222 == 0


class ShardWriter:
    """Puts the layer groups of models into a store, each once, and links to them."""

    def __init__(
        self, store: Path, parents: Sequence[Checkpoint], watch: SourceWatch, progress: Progress | None
    ) -> None:
        self.store, self.parents, self.watch, self.progress = store, parents, watch, progress
        self.report = StoreReport(store)
        self._sound: set[Path] = set()  # shards of the store that this process has written, or read and found right

    @cached_property
    def _layers(self) -> Sequence[Mapping[str, str]]:
        return [trainer_layers(parent) or {} for parent in self.parents]

    def shard(self, slot: int, prefix: str, members: Sequence[str]) -> Shard:
        """Return the shard that holds these tensors of a parent.

        It is the parent's own file where that is a shard that cannot be changed in place, else one in the store.
        """
        parent = self.parents[slot]
        held = held_shard(parent, prefix, members)
        if held is not None and is_read_only(held.path):
            return held
        entries = {member: parent.tensors[prefix + member] for member in members}
        hashes = hash_tensors(entries, self.watch)
        if held is not None and hashes != held.hashes:
            raise CheckpointError(
                held.path,
                "its tensors are not what its header says: the shard was changed",
                hint="take it from a copy, or recombine with --layout same",
            )
        return self._copy_in(entries, hashes, self._layers[slot])

    def _copy_in(
        self, entries: Mapping[str, TensorEntry], hashes: Mapping[str, str], layers: Mapping[str, str]
    ) -> Shard:
        metadata = {"format": "pt", HASHES_KEY: dumps(dict(hashes))}
        if known := {member: layers[member] for member in entries if member in layers}:
            metadata[LAYERS_KEY] = dumps(known)
        header = build_header(((m, e.dtype, e.shape, e.nbytes) for m, e in entries.items()), metadata)
        address = hashlib.sha256(header).hexdigest()
        target = self.store / address[:2] / f"{address}.safetensors"
        if target not in self._sound and not _is_sound(target, header, hashes):
            try:
                self._write(target, header, list(entries.values()))
            except OSError as error:
                raise OutputError(self.store, f"cannot be written: {error.strerror}", hint=_ANOTHER_PLACE) from error
            self.report.copied_in += 1
        self._sound.add(target)
        return Shard(target, address, hashes)

    def _write(self, target: Path, header: bytes, entries: Sequence[TensorEntry]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.store))
        try:
            staged = room / target.name
            assemble(staged, header, (Segment(e.file, e.start, e.end) for e in entries), self.watch, self.progress)
            staged.chmod(0o444)  # every model that links to it would change with it
            sync(staged)
            staged.rename(target)
        finally:
            shutil.rmtree(room, ignore_errors=True)

    def link(self, source: Path, target: Path) -> None:
        """Link a shard into a model's folder; copy it where the file system makes no link, and remember why."""
        try:
            os.link(source.resolve() if source.is_symlink() else source, target)
            self.report.linked += 1
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            copy_file(source, target, self.watch)
            target.chmod(0o444)  # a later round may link to it
            self.report.copied_instead += 1
            self.report.reason = error.strerror
