"""The folder of a model on this machine: what it holds, how its files are called, and paths that stay inside it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fedmr_merge.errors import CheckpointError

WEIGHTS = ".safetensors"
WEIGHTS_FILE = "model.safetensors"  #: of a model that this package writes
CONFIG_FILE = "config.json"  #: beside it: what is needed to rebuild it
#: What libraries call the one weight file of a folder, in the order in which it is looked for.
STANDARD_NAMES = ("model.safetensors", "adapter_model.safetensors", "diffusion_pytorch_model.safetensors")
PIPELINE = "model_index.json"  #: says that a folder is a pipeline of components
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PICKLE_HINT = (
    "convert it once where you trust it: "
    '`python -c "import torch, safetensors.torch as s; '
    "s.save_file(torch.load('IN', weights_only=True), 'OUT.safetensors')\"`"
)
_INDEX = re.compile(r"\.safetensors\.index(?:\.[\w-]+)?\.json\Z")
_MAX_JSON_BYTES = 64 << 20  #: of a configuration; an index is read in pieces


def is_index(name: str) -> bool:
    """Return whether a name is that of a shard index, such as `model.safetensors.index.json` or, of a variant,
    `model.safetensors.index.fp16.json`.
    """
    return _INDEX.search(name) is not None


def without_index(name: str) -> str:
    """Return the name of a shard index without its ending: `model` for `model.safetensors.index.json`; any other name
    as it is.
    """
    return _INDEX.sub("", name)


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError when a file's name says that it holds pickled weights."""
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(
            path, "pickled weights can run code when they are loaded and are refused", hint=PICKLE_HINT
        )


def leads_out(name: str) -> bool:
    """Return whether a file name from somebody else's JSON could name something outside the folder it stands for."""
    parts = PurePosixPath(name).parts
    return not parts or name.startswith("/") or "\\" in name or any(part in ("..", ".") for part in parts)


def refuse_name(folder: Path, name: str) -> None:
    """Raise CheckpointError for a name, listed by somebody else, that cannot be a file of the folder."""
    shown = repr(name if len(name) <= 80 else f"{name[:80]}…")
    if leads_out(name):
        raise CheckpointError(
            folder, f"file name {shown} leads out of the folder", hint="fetch the folder again from where it came from"
        )
    if "\0" in name or name != name.encode(errors="ignore").decode():
        raise CheckpointError(
            folder, f"{shown} is not a file name", hint="fetch the folder again from where it came from"
        )


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of a folder; a name or a link that leads out of the folder is refused."""
    refuse_name(folder, name)
    path = folder / name
    if not any(map(os.path.islink, (path, *(folder / parent for parent in PurePosixPath(name).parents[:-1])))):
        return path  # the same as following links, at a tenth of the cost
    target = Path(os.path.realpath(path))  # does not fail on a loop of links
    if not any(target.is_relative_to(root) for root in _trusted_roots(folder)):
        raise CheckpointError(path, _link_out(target), hint=_COPY_LINKS)
    return path


_SHARED_BLOBS = ".huggingface-shared-blobs"  #: marks the store of blobs of a cache of huggingface_hub 2.4 and later
_COPY_LINKS = "copy the folder with what its links lead to"


def _link_out(target: Path) -> str:
    return f"a link that leads out of the folder, to {target}"


def _trusted_roots(folder: Path) -> Iterator[Path]:
    yield (resolved := folder.resolve())
    # The Hub's cache keeps snapshots/COMMIT/NAME as a link into blobs/ of the same repository. What is there can be a
    # link itself, into a store that all repositories of the cache share.
    for parent in (*folder.absolute().parents, *resolved.parents):
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            yield (parent.parent / "blobs").resolve()
            if ((store := parent.parent.parent / "blobs") / _SHARED_BLOBS).is_file():
                yield store.resolve()


class DiskListing:
    """What a folder of this machine holds, as `selection.select` asks for it; folders are listed when asked for."""

    carries_code = True  #: a model's own code comes along: it is on this machine already

    def __init__(self, folder: Path) -> None:
        self.place = folder
        self._root = folder.resolve()
        self._entries: dict[str, list[os.DirEntry[str]]] = {}

    def files(self, folder: str) -> list[str]:
        """Return the names of what lies in a folder and is not a folder itself, hidden files left out."""
        return [entry.name for entry in self._list(folder) if not _is_folder(entry)]

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder, without those that `unusable` names.

        Links are followed, but not one behind another: links between many folders would lead everywhere by more ways
        than can be counted. A link to a folder that it lies in itself is left out.
        """
        above = (folder, *map(str, PurePosixPath(folder).parents)) if folder else ()
        within_link = any((self.place / part).is_symlink() for part in above if part != ".")
        found = []
        for entry in self._list(folder):
            if _is_folder(entry) and not (entry.is_symlink() and within_link):
                target = Path(os.path.realpath(entry.path)) if entry.is_symlink() else None
                if target is None or (target.is_relative_to(self._root) and not self._root.is_relative_to(target)):
                    found.append(entry.name)
        return found

    def unusable(self, folder: str) -> dict[str, str]:
        """Return what in a folder stands for another folder and cannot be one, with the reason."""
        found = {}
        for entry in self._list(folder):
            if not entry.is_symlink():
                continue
            target = Path(os.path.realpath(entry.path))
            if not target.exists() and not PurePosixPath(entry.name).suffix:
                found[entry.name] = _link_nowhere(Path(entry.path))
            elif _is_folder(entry) and not target.is_relative_to(self._root) and not self._root.is_relative_to(target):
                found[entry.name] = _link_out(target)
        return found

    def local(self, name: str) -> Path:
        """Return the path of a file."""
        return inside(self.place, name)

    def _list(self, folder: str) -> list[os.DirEntry[str]]:
        if folder not in self._entries:
            try:
                with os.scandir(self.place / folder) as entries:
                    found = [entry for entry in entries if not entry.name.startswith(".")]
            except OSError as error:
                raise CheckpointError(self.place / folder, f"cannot be read: {error.strerror}") from error
            self._entries[folder] = sorted(found, key=lambda entry: entry.name)
        return self._entries[folder]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def check_sidecar(folder: Path, name: str) -> None:
    """Raise CheckpointError where a file that should be copied leads out of the folder, leads nowhere or cannot be
    read.
    """
    path = folder / name
    if not path.exists():
        raise CheckpointError(
            path, _link_nowhere(path), hint="fetch the model again, or remove the link if it is not needed"
        )
    if not path.is_file():
        raise CheckpointError(path, "is a pipe or a device, not a file", hint="write its content to a file first")
    if not os.access(inside(folder, name), os.R_OK):
        raise CheckpointError(path, "cannot be read", hint="ask for the permission to read it, or remove it")


def _link_nowhere(path: Path) -> str:
    return f"a link to {path.readlink()}, where there is nothing" if path.is_symlink() else "no such file"


def read_json(path: Path, place: Path | None = None) -> Any:
    """Return what a JSON file says; errors name `place`, by default the path.

    Raises CheckpointError when it is not JSON, is too large for a configuration or cannot be read.
    """
    place = place or path
    try:
        if (nbytes := path.stat().st_size) > _MAX_JSON_BYTES:
            raise CheckpointError(place, f"has {nbytes:,} bytes, more than a configuration needs")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(place, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            place, f"not valid JSON: {error}", hint="fetch it again, or fix it: it would be copied as it is"
        ) from error
