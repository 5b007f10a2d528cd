"""Models on the Hub as inputs: `org/name[@revision][/subfolder]`.

    snapshots = expand_hub("org/run@round-000100/slot-*")   what is there and at which commit; one request
    raw = read_remote_header(snapshot, file)                a weight file's header, by range requests
    path = fetch(snapshot)                                  the model's files, in the cache, their hashes checked

The commit is resolved first, so that nobody's push can mix two states of a repository and no cached copy passes for the
newest one. Of a repository only safetensors, their indexes and sidecars are ever fetched.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fedmr_merge.checkpoint.folder import INDEX, PIPELINE, STANDARD_NAMES, WEIGHTS
from fedmr_merge.checkpoint.header import header_length
from fedmr_merge.checkpoint.sidecars import CHAT_TEMPLATES, MODULES, named_folders
from fedmr_merge.errors import HubError
from fedmr_merge.hub.listing import (
    HubFile,
    HubRef,
    HubSnapshot,
    list_cache,
    list_endpoint,
    narrow,
    parse_hub,
    places,
    refuse_pickles,
)

if TYPE_CHECKING:
    from fedmr_merge.checkpoint.writer import Progress
    from fedmr_merge.hub.client import Hub
    from fedmr_merge.hub.http import Patience

__all__ = [
    "HubFile",
    "HubRef",
    "HubSnapshot",
    "cached_place",
    "expand_hub",
    "fetch",
    "model_files",
    "parse_hub",
    "read_remote_header",
    "resolve_hub",
    "weight_files",
]

_FIRST_BYTES = 1 << 17  # holds the whole header of most models, so that one request is enough
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")


def resolve_hub(
    ref: str, *, endpoint: str | None = None, token: str | None = None, patience: Patience | None = None
) -> HubSnapshot:
    """Return the one snapshot that a Hub id names. Raises HubError; see `expand_hub`."""
    snapshots = expand_hub(ref, endpoint=endpoint, token=token, patience=patience)
    if len(snapshots) > 1:
        names = ", ".join(snapshot.subfolder for snapshot in snapshots[:4])
        raise HubError(f"{ref} names {len(snapshots)} models: {names}", hint="name one of them")
    return snapshots[0]


def expand_hub(
    ref: str, *, endpoint: str | None = None, token: str | None = None, patience: Patience | None = None
) -> tuple[HubSnapshot, ...]:
    """Return the snapshots that a Hub id names, sorted by folder; more than one only where it has a glob.

    A glob matches the folders that hold weights, and weight files. All snapshots are of one commit. With HF_HUB_OFFLINE
    set the answer comes from the cache, for a commit.

    Raises HubError: no such repository, revision or folder; private or gated; not reachable; no safetensors in it; a
    listing with hostile file names, sizes or hashes.
    """
    parsed = parse_hub(ref)
    if parsed is None:
        raise HubError(f"{ref!r} is no Hub id", hint="write org/name, org/name@revision or org/name@revision/subfolder")
    with _open(endpoint, token, patience) as hub:
        snapshot = list_cache(hub, parsed) if hub.offline else list_endpoint(hub, parsed)
    return tuple(narrow(snapshot, place) for place in places(snapshot, parsed))


def cached_place(ref: HubRef) -> Path:
    """Return where the cache keeps what the id of a commit names, whether it is there or not; the Hub is not asked."""
    with _open(None, None, None) as hub:
        return hub.snapshot_folder(ref.repo_id, ref.revision or "") / ref.subfolder


def weight_files(
    snapshot: HubSnapshot, *, token: str | None = None, patience: Patience | None = None
) -> tuple[str, ...]:
    """Return the weight files of a snapshot's model, chosen as for a local folder; an index is fetched and read.

    Raises HubError when a folder holds several weight files and nothing says which, or when the index names a file that
    the repository does not hold.
    """
    with _open(snapshot.endpoint, token, patience) as hub:
        return _weight_files(hub, snapshot)


def model_files(
    snapshot: HubSnapshot, *, token: str | None = None, patience: Patience | None = None
) -> tuple[str, ...]:
    """Return everything of a snapshot that belongs to its model: weights, indexes and sidecars.

    Raises HubError as `weight_files` does.
    """
    with _open(snapshot.endpoint, token, patience) as hub:
        return _model_files(hub, snapshot)


def read_remote_header(
    snapshot: HubSnapshot, file: str, *, token: str | None = None, patience: Patience | None = None
) -> bytes:
    """Return a weight file's safetensors header (length prefix and JSON) by range requests; no tensor is fetched.

    Raises HubError when the endpoint does not send what it lists, CheckpointError when it is no safetensors header.
    """
    size = snapshot.listed(file).size
    repo_id, commit = snapshot.repo_id, snapshot.commit
    with _open(snapshot.endpoint, token, patience) as hub:
        raw = hub.read_range(repo_id, commit, file, 0, min(_FIRST_BYTES, size), size) if size else b""
        end = 8 + header_length(raw[:8], Path(repo_id) / file, size)
        if end > len(raw):
            raw += hub.read_range(repo_id, commit, file, len(raw), end, size)
    return raw[:end]


def fetch(
    snapshot: HubSnapshot,
    files: Iterable[str] | None = None,
    *,
    token: str | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> Path:
    """Fetch files of a snapshot into huggingface_hub's cache, check their hashes, return the local path of `subfolder`.

    `files` are paths in the repository, by default the model's weights, indexes and sidecars. What is in the cache is
    not fetched again, but checked again.

    Raises HubError: a file that the snapshot does not list, other bytes than were listed, a config.json that asks for
    code to be run, and whatever `expand_hub` raises.
    """
    with _open(snapshot.endpoint, token, patience, progress) as hub:
        chosen = tuple(files) if files is not None else _model_files(hub, snapshot)
        hub.traffic.expect(sum(snapshot.listed(file).size for file in chosen))
        for file in chosen:
            _fetch_file(hub, snapshot, file)
        hub.traffic.finish()
        return hub.snapshot_folder(snapshot.repo_id, snapshot.commit) / snapshot.subfolder


@contextlib.contextmanager
def _open(
    endpoint: str | None, token: str | None, patience: Patience | None, progress: Progress | None = None
) -> Iterator[Hub]:
    from fedmr_merge.hub.client import open_hub  # imports huggingface_hub

    with open_hub(endpoint=endpoint, token=token, patience=patience, progress=progress) as hub:
        yield hub


def _model_files(hub: Hub, snapshot: HubSnapshot) -> tuple[str, ...]:
    """The weights, and what lies beside them: in a pipeline of components, in every folder."""
    weights = _weight_files(hub, snapshot)
    if weights == (snapshot.subfolder,):
        return weights
    own = snapshot.subfolder or "."
    pipeline = all(_folder(name) != own for name in weights)
    folders = {own, *(_inside(snapshot, inner) for inner in (CHAT_TEMPLATES, *_module_folders(hub, snapshot)))}
    others = (name for name in snapshot.files if not name.endswith(WEIGHTS))
    return (*(name for name in others if pipeline or _folder(name) in folders), *weights)


def _module_folders(hub: Hub, snapshot: HubSnapshot) -> list[str]:
    """The folders without weights that a modules.json names."""
    modules = _inside(snapshot, MODULES)
    if modules not in snapshot.files:
        return []
    content = _read_json(_fetch_file(hub, snapshot, modules), f"{snapshot.origin}: {modules}")
    weights = (*snapshot.pickles, *(name for name in snapshot.files if name.endswith(WEIGHTS)))
    with_weights = {_folder(name) for name in weights}
    return [name for name in named_folders(content) if _inside(snapshot, name) not in with_weights]


def _inside(snapshot: HubSnapshot, name: str) -> str:
    return f"{snapshot.subfolder}/{name}" if snapshot.subfolder else name


def _weight_files(hub: Hub, snapshot: HubSnapshot) -> tuple[str, ...]:
    if snapshot.subfolder in snapshot.files:
        return (snapshot.subfolder,)
    own = snapshot.subfolder or "."
    return (
        (_component_weights(hub, snapshot, own) if _inside(snapshot, PIPELINE) in snapshot.files else ())
        or _folder_weights(hub, snapshot, own)
        or _component_weights(hub, snapshot, own)
    )


def _component_weights(hub: Hub, snapshot: HubSnapshot, own: str) -> tuple[str, ...]:
    folders = {_folder(name) for name in (*snapshot.files, *snapshot.pickles)}
    components = sorted(folder for folder in folders if folder != "." and _folder(folder) == own)
    found = {component: _folder_weights(hub, snapshot, component) for component in components}
    names = tuple(name for weights in found.values() for name in weights)
    lost = next((name for name in snapshot.pickles if found.get(_folder(name)) == ()), None)
    if names and lost:
        refuse_pickles(f"{snapshot.origin}: {_folder(lost)}", lost)
    return names


def _folder_weights(hub: Hub, snapshot: HubSnapshot, folder: str) -> tuple[str, ...]:
    inside = [name for name in snapshot.files if _folder(name) == folder]
    weights = [name for name in inside if name.endswith(WEIGHTS)]
    indexes = [name for name in inside if name.endswith(INDEX)]
    place = "" if folder == "." else f"{folder}/"
    if len(indexes) > 1:
        indexes = [name for name in (f"{place}{n}.index.json" for n in STANDARD_NAMES) if name in indexes]
    if indexes:
        shards = {place + shard for shard in _shards(_fetch_file(hub, snapshot, indexes[0]), snapshot, indexes[0])}
        for shard in shards:
            snapshot.listed(shard)
            if not shard.endswith(WEIGHTS):
                raise HubError(f"{snapshot.origin}: {indexes[0]}: weight_map names {shard}, which is no weight file")
        return tuple(sorted(shards))
    standard = [name for name in (place + n for n in STANDARD_NAMES) if name in weights]
    if len(weights) > 1 and not standard:
        raise HubError(
            f"{snapshot.origin}: {len(weights)} weight files in one folder and no index: {', '.join(weights[:4])}",
            hint=f"name one of them: {snapshot.repo_id}@{snapshot.commit}/{weights[0]}",
        )
    return tuple(standard[:1] or weights)


def _shards(index: Path, snapshot: HubSnapshot, name: str) -> set[str]:
    content = _read_json(index, f"{snapshot.origin}: {name}")
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise HubError(f"{snapshot.origin}: {name}: weight_map must map tensor names to file names")
    return set(weight_map.values())


def _fetch_file(hub: Hub, snapshot: HubSnapshot, file: str) -> Path:
    """Fetch one file unless the cache has it, and check it; a copy with other bytes is fetched once more."""
    known, subject = snapshot.listed(file), f"{snapshot.origin}: {file}"
    hub.traffic.largest_answer = known.size
    for _ in range(2):
        path = Path(hub.ask(subject, lambda: hub.download(snapshot.repo_id, snapshot.commit, file)))
        if known.matches(path):
            if path.name == "config.json":
                _refuse_code(path, subject)
            return path
        path.resolve().unlink()
        path.unlink(missing_ok=True)
    raise HubError(
        f"{subject}: {hub.endpoint} sends other bytes than it lists", hint="do not use this endpoint's files"
    )


def _refuse_code(config: Path, subject: str) -> None:
    content = _read_json(config, subject)
    asks = next((key for key in _CODE_KEYS if isinstance(content, dict) and content.get(key)), None)
    if asks is not None:
        raise HubError(f"{subject}: its {asks!r} asks for code of the repository to be run, which is refused")


def _read_json(path: Path, subject: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise HubError(f"{subject}: not valid JSON: {error}") from error


def _folder(name: str) -> str:
    return str(PurePosixPath(name).parent)
