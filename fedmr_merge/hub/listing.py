"""What a repository of the Hub holds at one commit, and what of it is refused."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from fedmr_merge.checkpoint.folder import PICKLE_SUFFIXES, WEIGHTS, is_index
from fedmr_merge.checkpoint.hashing import file_hash
from fedmr_merge.checkpoint.sidecars import is_sidecar
from fedmr_merge.errors import HubError

if TYPE_CHECKING:
    from fedmr_merge.hub.client import Hub

_REF = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
CARD_KEYS = ("library_name", "pipeline_tag", "language", "base_model")  #: what models merged of others have in common
_MOST_ITEMS, _LONGEST_ITEM = 20, 200


@dataclass(frozen=True)
class HubRef:
    """The parts of a Hub id."""

    repo_id: str
    revision: str | None
    subfolder: str  #: a folder, a weight file, or a glob over either; empty for the whole repository

    def __str__(self) -> str:
        return _reference(self.repo_id, self.revision, self.subfolder)


@dataclass(frozen=True)
class HubFile:
    """One file of a repository: its size in bytes, and one of two hashes; of some files a cache does not know any."""

    size: int
    sha256: str | None = None  #: of the content, for files kept by LFS or xet, as weights are
    git_sha1: str | None = None  #: of the git blob, for small files

    def matches(self, path: Path) -> bool:
        """Return whether a local file has this size and, where one is known, this hash."""
        size = path.stat().st_size
        if size != self.size:
            return False
        if self.sha256 is None and self.git_sha1 is None:
            return True
        if self.sha256 is not None:
            return file_hash(path, hashlib.sha256()) == self.sha256
        return file_hash(path, git_blob_digest(size)) == self.git_sha1


@dataclass(frozen=True)
class HubSnapshot:
    """A repository at one commit, or one folder or weight file of it."""

    endpoint: str
    repo_id: str
    commit: str  #: 40 hex digits
    subfolder: str  #: empty for the root; no slash at either end
    files: Mapping[str, HubFile]  #: path in the repository → file; safetensors, indexes and sidecars under `subfolder`
    licence: str | None  #: what the repository's card says
    others: tuple[str, ...] = ()  #: paths of all other files under `subfolder`; they are never fetched
    card: Mapping[str, Any] = field(default_factory=dict)  #: CARD_KEYS of the repository's card, as far as it has them
    card_read: bool = True  #: whether there was a card to look at; offline there is none

    @property
    def origin(self) -> str:
        """What lineages and cards call it: `org/name@commit/subfolder`."""
        return _reference(self.repo_id, self.commit, self.subfolder)

    @property
    def is_file(self) -> bool:
        """Whether the snapshot is one weight file."""
        return self.subfolder in self.files

    @property
    def _prefix(self) -> str:
        folder = self.subfolder.rpartition("/")[0] if self.is_file else self.subfolder
        return f"{folder}/" if folder else ""

    def inner(self, name: str) -> str:
        """Return the path of a file in the model's folder, from that in the repository."""
        return name.removeprefix(self._prefix)

    def outer(self, name: str) -> str:
        """Return the path of a file in the repository, from that in the model's folder."""
        return self._prefix + name

    def listed(self, file: str) -> HubFile:
        """Return a file by its path in the repository. Raises HubError when the snapshot does not list it."""
        if file not in self.files:
            raise HubError(f"{self.origin}: {file[:80]!r} is not among the files of the repository")
        return self.files[file]


def parse_hub(ref: str) -> HubRef | None:
    """Return the parts of a Hub id; None when it cannot be one. A slash in a branch's name is written `%2F`."""
    match = _REF.fullmatch(ref)
    if match is None or any(part in ("", ".", "..") for part in ref.split("/")):
        return None
    return HubRef(match[1], unquote(match[2]) if match[2] else None, match[3] or "")


def parse_origin(place: str) -> HubRef | None:
    """Take apart what a lineage calls a model on the Hub, `org/name@commit[/subfolder]`; None for any other place."""
    ref = parse_hub(place)
    return ref if ref is not None and _COMMIT.fullmatch(ref.revision or "") else None


def list_endpoint(hub: Hub, ref: HubRef) -> HubSnapshot:
    """Return the whole repository at the commit that the reference's revision means now: one request.

    Raises HubError for what the endpoint refuses, and for a listing with hostile names, sizes or hashes.
    """
    subject = _reference(ref.repo_id, ref.revision, "")
    info = hub.ask(subject, lambda: hub.api.model_info(ref.repo_id, revision=ref.revision, files_metadata=True))
    commit = hub.commit_id(info.sha, subject)
    files: dict[str, HubFile] = {}
    for item in info.siblings or ():
        _refuse_name(item.rfilename, subject)
        if item.lfs:
            file = HubFile(item.lfs.size, sha256=item.lfs.sha256)
        else:
            file = HubFile(item.size if item.size is not None else -1, git_sha1=item.blob_id)
        _refuse_listing(file, item.size, f"{subject}: {item.rfilename}")
        files[item.rfilename] = file
    licence = getattr(info.card_data, "license", None)
    if isinstance(info.id, str) and info.id.casefold() == ref.repo_id.casefold():
        ref = replace(ref, repo_id=info.id)  # the Hub finds a name in any case: a model has one name here
    found = _snapshot(hub, ref, commit, files, licence if isinstance(licence, str) else None)
    metadata: Any = info.card_data
    return replace(found, card=card_facts(metadata.to_dict() if metadata else {}))


def card_facts(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a merge passes on of the metadata of a card: strings, or lists of some strings, of CARD_KEYS."""
    return {key: metadata[key] for key in CARD_KEYS if _is_short(metadata.get(key))}


def _is_short(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return 0 < len(items) <= _MOST_ITEMS and all(isinstance(item, str) and len(item) <= _LONGEST_ITEM for item in items)


def list_cache(hub: Hub, ref: HubRef) -> HubSnapshot:
    """Return what the cache holds of a repository at a commit.

    Raises HubError when the reference names no commit that is in the cache.
    """
    folder = hub.snapshot_folder(ref.repo_id, ref.revision or "")
    if not ref.revision or not _COMMIT.fullmatch(ref.revision) or not folder.is_dir():
        kept = sorted(hub.snapshot_folder(ref.repo_id, "").glob("*"), key=lambda path: path.stat().st_mtime)
        hint = f"write {replace(ref, revision=kept[-1].name)}" if kept else "fetch it once while online"
        raise HubError(f"{ref}: offline mode is on, and this names no commit that is in the cache", hint=hint)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = cached_blob(path)
        name = blob.name if blob else ""  # the cache calls a file's bytes by their hash
        hashes = {"sha256": name if len(name) == 64 else None, "git_sha1": name if len(name) == 40 else None}
        files[path.relative_to(folder).as_posix()] = HubFile(path.stat().st_size, **hashes)
    return replace(_snapshot(hub, ref, ref.revision, files, None), card_read=False)


def cached_blob(file: Path) -> Path | None:
    """Return the `blobs/HASH` of its repository that a file of the cache is a link to, None where it is not a link.

    Where the cache shares the bytes of weights between repositories, `blobs/HASH` is itself a link, to a file whose
    name is not this hash and which is not this repository's alone: it is not followed. A cache that was copied, or that
    lies on a file system without links, holds the files themselves.
    """
    if not file.is_symlink():
        return None
    blob = Path(os.path.normpath(file.parent / file.readlink()))
    return blob if blob.parent.name == "blobs" and blob.parent.parent.name.startswith("models--") else None


def places(snapshot: HubSnapshot, ref: HubRef) -> list[str]:
    """Return the folders with weights and the weight files that a reference's subfolder names, sorted; "" is the root.

    Raises HubError when nothing of that name holds weights.
    """
    if not ref.subfolder:
        return [""]
    weights = [name for name in snapshot.files if name.endswith(WEIGHTS)]
    folders = {str(parent) for name in weights for parent in PurePosixPath(name).parents} - {"."}
    pattern = ref.subfolder.rstrip("/").split("/")
    candidates = ((place, place.split("/")) for place in sorted({*folders, *weights}))
    found = [p for p, parts in candidates if len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))]
    place = "/".join(pattern)
    if not found and any(name.startswith(f"{place}/") and name.endswith(PICKLE_SUFFIXES) for name in snapshot.others):
        return [place]  # to be refused by the name of the pickle
    if not found:
        there = ", ".join(sorted(folders)[:8] or sorted(weights)[:8])
        raise HubError(f"{ref}: there is nothing of that name with weights in it", hint=f"there is: {there}")
    return found


def narrow(snapshot: HubSnapshot, place: str) -> HubSnapshot:
    """Return the part of a snapshot that lies in a folder, or is one file."""
    files = {n: f for n, f in snapshot.files.items() if not place or n == place or n.startswith(f"{place}/")}
    others = tuple(name for name in snapshot.others if not place or name.startswith(f"{place}/"))
    return replace(snapshot, subfolder=place, files=files, others=others)


def git_blob_digest(size: int) -> Any:
    """Return the hash object that, fed a file's bytes, gives what git calls the file of this size."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _reference(repo_id: str, revision: str | None, subfolder: str) -> str:
    return repo_id + (f"@{revision}" if revision else "") + (f"/{subfolder}" if subfolder else "")


def _snapshot(hub: Hub, ref: HubRef, commit: str, files: Mapping[str, HubFile], licence: str | None) -> HubSnapshot:
    wanted = {name: file for name, file in sorted(files.items()) if _is_fetched(name)}
    others = tuple(name for name in sorted(files) if name not in wanted)
    return HubSnapshot(hub.endpoint, ref.repo_id, commit, "", wanted, licence, others)


def _is_fetched(name: str) -> bool:
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts) or path.suffix == ".py":
        return False
    return path.suffix == WEIGHTS or is_index(name) or is_sidecar(path.name)


def _refuse_name(name: object, subject: str) -> None:
    """Raise HubError for a name that would lead out of the cache, where it becomes a path."""
    safe = isinstance(name, str) and len(name) < 1000 and not re.search(r"[\\\x00-\x1f\x7f]", name)
    if not safe or any(part in ("", ".", "..") for part in str(name).split("/")):
        raise HubError(f"{subject}: the repository lists a file name that is refused, {str(name)[:80]!r}")


def _refuse_listing(file: HubFile, size: object, subject: str) -> None:
    if type(file.size) is not int or file.size < 0 or size not in (None, file.size):
        raise HubError(f"{subject}: the endpoint lists a wrong size, {size!r}")
    digest, length = (file.sha256, 64) if file.sha256 is not None else (file.git_sha1, 40)
    if not isinstance(digest, str) or not re.fullmatch(rf"[0-9a-f]{{{length}}}", digest):
        raise HubError(f"{subject}: the endpoint lists no hash, or a malformed one")
