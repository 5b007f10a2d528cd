"""Models on the Hub as inputs: `org/name[@revision][/subfolder]`.

    with open_hub() as hub:
        snapshots = expand_hub(hub, "org/run@round-000100/slot-*")   what is there and at which commit; one request
        selection = select_files(hub, snapshot)                      which of its files are the model
        raw = read_remote_header(hub, snapshot, file)                a weight file's header, by range requests
        path = fetch_model(hub, snapshot, selection)                 the model's files, in the cache, hashes checked

The commit is resolved first, so that a push meanwhile cannot mix two states of a repository and no cached copy passes
for the newest one. Of a repository only safetensors, their indexes and sidecars are ever fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from fedmr_merge.checkpoint.folder import read_json
from fedmr_merge.checkpoint.header import header_length, reading
from fedmr_merge.checkpoint.selection import Selection, select
from fedmr_merge.errors import CheckpointError, HubError
from fedmr_merge.hub.listing import (
    HubRef,
    HubSnapshot,
    cached_blob,
    list_cache,
    list_endpoint,
    narrow,
    parse_hub,
    places,
)

if TYPE_CHECKING:
    from fedmr_merge.hub.client import Hub

_FIRST_BYTES = 1 << 17  # holds the whole header of most models, so that one request is enough
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")


def resolve_hub(hub: Hub, ref: str) -> HubSnapshot:
    """Return the one snapshot that a Hub id names. Raises HubError; see `expand_hub`."""
    snapshots = expand_hub(hub, ref)
    if len(snapshots) > 1:
        names = ", ".join(snapshot.subfolder for snapshot in snapshots[:4])
        raise HubError(f"{ref} names {len(snapshots)} models: {names}", hint="name one of them")
    return snapshots[0]


def expand_hub(hub: Hub, ref: str) -> tuple[HubSnapshot, ...]:
    """Return the snapshots that a Hub id names, sorted by folder; more than one only where it has a glob.

    A glob matches the folders that hold weights, and weight files. All snapshots are of one commit. With HF_HUB_OFFLINE
    set the answer comes from the cache, for a commit.

    Raises HubError: no such repository, revision or folder; private or gated; not reachable; a listing with hostile
    file names, sizes or hashes.
    """
    parsed = parse_hub(ref)
    if parsed is None:
        raise HubError(
            f"{ref!r} is not a Hub id", hint="write org/name, org/name@revision or org/name@revision/subfolder"
        )
    snapshot = list_cache(hub, parsed) if hub.offline else list_endpoint(hub, parsed)
    return tuple(narrow(snapshot, place) for place in places(snapshot, parsed))


def cached_place(ref: HubRef) -> Path:
    """Return where the cache keeps what the id of a commit names, whether it is there or not; the Hub is not asked."""
    from fedmr_merge.hub.client import open_hub  # imports huggingface_hub

    with open_hub() as hub:
        return hub.snapshot_folder(ref.repo_id, ref.revision or "") / ref.subfolder


def select_files(hub: Hub, snapshot: HubSnapshot) -> Selection:
    """Decide which files of a snapshot are the model, as for a folder of this machine; an index is fetched and read.

    Names are relative to the snapshot's subfolder; where it is a weight file, to the folder of that file.

    Raises CheckpointError as `select` does, HubError where a small file that must be read cannot be fetched or,
    offline, where the cache does not hold the model.
    """
    if snapshot.is_file:
        return Selection((PurePosixPath(snapshot.subfolder).name,))
    try:
        return select(HubListing(hub, snapshot))
    except CheckpointError as error:
        if hub.offline:
            raise HubError(
                f"{error}, and offline mode is on: the cache may hold a part of the repository only",
                hint="unset HF_HUB_OFFLINE and give the same command again",
            ) from error
        raise


class HubListing:
    """What a folder of a repository holds, as `selection.select` asks for it."""

    carries_code = False  #: code from a repository is never fetched

    def __init__(self, hub: Hub, snapshot: HubSnapshot) -> None:
        self.place = Path(snapshot.origin)
        self._hub = hub
        self._snapshot = snapshot
        self._files: dict[str, list[str]] = {"": []}
        self._folders: dict[str, set[str]] = {"": set()}
        for name in (*snapshot.files, *snapshot.others):
            inner = PurePosixPath(snapshot.inner(name))
            if any(part.startswith(".") for part in inner.parts):
                continue
            self._files.setdefault(_folder(inner), []).append(inner.name)
            for path in inner.parents[:-1]:
                self._folders.setdefault(_folder(path), set()).add(path.name)

    def files(self, folder: str) -> Sequence[str]:
        """Return the names of the files in a folder, hidden ones left out."""
        return sorted(self._files.get(folder, ()))

    def folders(self, folder: str) -> Sequence[str]:
        """Return the names of the folders in a folder."""
        return sorted(self._folders.get(folder, ()))

    def unusable(self, folder: str) -> dict[str, str]:
        """Return nothing: a repository has no links."""
        del folder
        return {}

    def local(self, name: str) -> Path:
        """Fetch a small file and return its path."""
        return _fetch_file(self._hub, self._snapshot, self._snapshot.outer(name))


def read_remote_header(hub: Hub, snapshot: HubSnapshot, file: str) -> bytes:
    """Return a weight file's safetensors header (length prefix and JSON): from the cache where the file is there, else
    by range requests; no tensor is fetched.

    Raises HubError when the endpoint does not send what it lists, CheckpointError when it is not a safetensors header.
    """
    size = snapshot.listed(file).size
    repo_id, commit = snapshot.repo_id, snapshot.commit
    cached = hub.snapshot_folder(repo_id, commit) / file

    def read(start: int, end: int) -> bytes:
        if cached.is_file() and cached.stat().st_size == size:  # a hash is checked before a tensor is read
            with cached.open("rb") as stream:
                stream.seek(start)
                return stream.read(end - start)
        return hub.read_range(repo_id, commit, file, start, end, size)

    raw = read(0, min(_FIRST_BYTES, size)) if size else b""
    end = 8 + header_length(raw[:8], Path(repo_id) / file, size)
    if end > len(raw):
        raw += read(len(raw), end)
    return raw[:end]


def fetch_model(hub: Hub, snapshot: HubSnapshot, selection: Selection | None = None) -> Path:
    """Fetch a model's files into huggingface_hub's cache, check their hashes, and return the local path of the
    snapshot's subfolder; the bytes are reported as they pass.

    What is in the cache is not fetched again, but checked again. Raises as `select_files` and `fetch_files` do.
    """
    selection = selection or select_files(hub, snapshot)
    names = [snapshot.outer(name) for name in (*selection.sidecars, *selection.indexes, *selection.weights)]
    hub.traffic.expect(sum(snapshot.listed(name).size for name in names))
    place = fetch_files(hub, snapshot, names)
    hub.traffic.finish()
    return place


def fetch_files(hub: Hub, snapshot: HubSnapshot, files: Iterable[str]) -> Path:
    """Fetch files of a snapshot, named by their paths in the repository, and return the local path of its subfolder.

    Raises HubError: a file that the snapshot does not list, other bytes than were listed, a config.json that asks for
    code to be run, and whatever `expand_hub` raises.
    """
    for file in files:
        _fetch_file(hub, snapshot, file)
    return hub.snapshot_folder(snapshot.repo_id, snapshot.commit) / snapshot.subfolder


def _fetch_file(hub: Hub, snapshot: HubSnapshot, file: str) -> Path:
    """Fetch one file unless the cache has it, and check it; a copy with other bytes is fetched once more.

    Offline, where it could not be fetched again, nothing of the cache is removed.
    """
    known, subject = snapshot.listed(file), f"{snapshot.origin}: {file}"
    for anew in (False, True):
        with hub.traffic.at_most(known.size):
            path = Path(hub.ask(subject, partial(hub.download, snapshot.repo_id, snapshot.commit, file, anew=anew)))
        with reading(path):
            is_sound = known.matches(path)
        if is_sound:
            if path.name == "config.json":
                _refuse_code(path, subject)
            return path
        if hub.offline:
            raise HubError(
                f"{subject}: its copy in the cache is damaged: the bytes are not those of its hash",
                hint="unset HF_HUB_OFFLINE and give the same command again, which fetches it anew",
            )
        _forget(path, subject)
    raise HubError(
        f"{subject}: {hub.endpoint} sends other bytes than it lists", hint="do not use this endpoint's files"
    )


def _forget(path: Path, subject: str) -> None:
    """Remove a file of a snapshot, and the blob of its repository that it is a link to; never what other repositories
    may share with it.
    """
    try:
        if (blob := cached_blob(path)) is not None:
            blob.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise HubError(
            f"{subject}: its copy in the cache is damaged, and cannot be removed: {error.strerror}",
            hint=f"remove {path}",
        ) from error


def _refuse_code(config: Path, subject: str) -> None:
    content = read_json(config, Path(subject))
    asks = next((key for key in _CODE_KEYS if isinstance(content, dict) and content.get(key)), None)
    if asks is not None:
        raise HubError(
            f"{subject}: its {asks!r} asks for code of the repository to be run, which is refused",
            hint="download the repository, read its code, and merge the folder of this machine",
        )


def _folder(path: PurePosixPath) -> str:
    return "" if str(path.parent) == "." else str(path.parent)
