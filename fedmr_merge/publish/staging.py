"""Gather exactly the files of a push in a fresh folder, and hash them.

What is uploaded is read from there and from nowhere else, so that nothing that is not in the plan can be sent.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG

from fedmr_merge.checkpoint.copying import link_or_copy
from fedmr_merge.checkpoint.folder import PICKLE_SUFFIXES, WEIGHTS
from fedmr_merge.checkpoint.writer import remove_leftover
from fedmr_merge.errors import HubError
from fedmr_merge.hub.listing import HubFile, git_blob_digest
from fedmr_merge.lineage.model import LINEAGE_FILE
from fedmr_merge.publish.card import CARD_FILE
from fedmr_merge.runs.names import CHECKPOINTS, EVALUATION, GLOBAL, PARTITION, PUBLISHED, RECIPE, STATE

_PICKLES = (*PICKLE_SUFFIXES, ".joblib", ".dill", ".npz")
#: Files that version 0.1.0 staged under such names as `.lineage.json.ab12cd_x`; `.env.template` is not one of them.
_BEFORE = (CARD_FILE, LINEAGE_FILE, EVALUATION, PARTITION, f"model{WEIGHTS}.index.json")
#: What killed processes of this package staged.
_LEFTOVER_FOLDER = re.compile(r"\.(.+\.)?(push|staging)-\w+")
_LEFTOVER_FILE = re.compile(rf"\..+\.staging-[0-9a-f]{{16}}|\.({'|'.join(map(re.escape, _BEFORE))})\.[a-z0-9_]{{8}}")
_OF_THE_CLIENT = (".cache", ".gitattributes", ".DS_Store")  #: made by `hf download`, by git and by a file manager

#: Folder and names of its files → what to send in place of files, or besides them: a string, or its pieces.
Rewrite = Callable[[Path, Sequence[str]], Mapping[str, str | Iterator[str]]]


@dataclass(frozen=True)
class PushFile:
    """One file of a push."""

    path: str  #: its place in the repository, with `/`
    size: int  #: bytes
    sha256: str
    git_sha1: str  #: of the git blob

    @property
    def is_weights(self) -> bool:
        return self.path.endswith(WEIGHTS)

    def equals(self, remote: HubFile) -> bool:
        """Whether the Hub has these bytes."""
        if remote.sha256 is not None:
            return remote.sha256 == self.sha256
        return remote.git_sha1 == self.git_sha1


@dataclass(frozen=True)
class Staging:
    """The files of a push: where they came from, where they are gathered, and what may not be sent."""

    source: Path
    folder: Path
    files: tuple[PushFile, ...]
    faults: tuple[str, ...]
    passed_over: tuple[str, ...] = ()  #: never sent, and not a fault: other programs made them

    def replaced(self, name: str, text: str) -> Staging:
        """Return the same files, one of them with another content."""
        target = self.folder / name
        target.unlink(missing_ok=True)  # it may be a hard link to the user's own file
        target.write_text(text, encoding="utf-8", newline="")
        files = {**{file.path: file for file in self.files}, name: _hashed(target, name)}
        return replace(self, files=tuple(files[path] for path in sorted(files)))


def pushed_folder(path: Path) -> Path:
    """Return the folder whose files are sent: of a run, what its `publish` stage wrote; else the folder itself.

    Raises HubError when there is no such folder, when it holds no weights, or when it is a checkpoint, or holds some.
    """
    folder = path
    if (path / RECIPE).is_file() and any((path / name).is_dir() for name in (*PUBLISHED, CHECKPOINTS)):
        published = [path / name for name in PUBLISHED if (path / name).is_dir()]
        if not published:
            raise HubError(f"{path}: the run has nothing to publish yet", hint="its recipe's `publish` stage makes it")
        folder = published[0]
    if not folder.is_dir():
        reason = "is a file" if folder.exists() else "there is no such folder"
        raise HubError(f"{path}: {reason}", hint="name a run folder, its global/, or a folder with safetensors")
    checkpoint = next((name.parent for name in (*folder.glob(STATE), *folder.glob(f"*/{STATE}"))), None)
    if checkpoint is not None and (checkpoint / GLOBAL).is_dir():
        raise HubError(
            f"{checkpoint}: is a checkpoint of a run, which may hold what a method keeps of each client",
            hint=f"name a model in it, {GLOBAL} or slot-00",
        )
    if not any(folder.rglob(f"*{WEIGHTS}")):
        raise HubError(f"{folder}: holds no safetensors", hint="a run writes them to its global/ when it ends")
    return folder


@contextlib.contextmanager
def stage(folder: Path, rewrite: Rewrite | None = None) -> Iterator[Staging]:
    """Gather the files of a folder for the length of a block; `rewrite` returns what is sent in place of what it holds.

    The staging folder is made beside the folder and holds hard links, so that big files cost nothing; it holds copies
    where links cannot be made. Links, dot files and pickles are not gathered: they are listed as faults.
    """
    names, faults, passed_over = _listing(folder)
    with _beside(folder) as staging:
        files = []
        rewritten = rewrite(folder, names) if rewrite is not None else {}
        for name in sorted({*names, *rewritten}):
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in rewritten:
                with target.open("w", encoding="utf-8", newline="") as stream:
                    text = rewritten[name]
                    stream.writelines([text] if isinstance(text, str) else text)
            else:
                _take(folder / name, target)
            files.append(_hashed(target, name))
        yield Staging(folder, staging, tuple(files), tuple(faults), tuple(passed_over))


def _listing(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the names of the files to send, the faults of the others, and what is passed over."""
    names, faults, passed_over = [], [], []
    for place, folders, files in os.walk(folder):
        folders.sort()
        for entry in sorted([*folders, *files]):
            path = Path(place) / entry
            name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
            pattern = _LEFTOVER_FOLDER if S_ISDIR(mode) else _LEFTOVER_FILE if S_ISREG(mode) else None
            left = pattern is not None and pattern.fullmatch(entry) is not None
            fault = _refused(entry, mode)
            if left:
                remove_leftover(path)
            if left or (entry in _OF_THE_CLIENT and not S_ISLNK(mode)):
                passed_over.append(name)
            elif fault is not None:
                faults.append(f"{name}: {fault}")
            elif S_ISREG(mode):
                names.append(name)
                continue
            else:
                continue
            if entry in folders:
                folders.remove(entry)
    return names, faults, passed_over


def _refused(name: str, mode: int) -> str | None:
    if S_ISLNK(mode):
        return "a link; what it leads to would be sent"
    if name.startswith("."):
        return "a dot file"
    if not S_ISREG(mode) and not S_ISDIR(mode):
        return "neither a file nor a folder"
    if S_ISREG(mode) and name.lower().endswith(_PICKLES):
        return "can hold a pickle, which runs code when it is loaded"
    if re.search(r"[\\\x00-\x1f\x7f]", name):
        return "its name holds characters that the Hub does not take"
    return None


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Make a staging folder beside a folder, locked as long as it is in use, and remove it at the end."""
    folder = folder.absolute()
    prefix = f".{folder.name}.push-"
    for leftover in folder.parent.glob(f"{glob.escape(prefix)}*"):
        remove_leftover(leftover)
    try:
        staging = tempfile.mkdtemp(prefix=prefix, dir=folder.parent)
    except OSError:  # a folder that may only be read
        staging = tempfile.mkdtemp(prefix="fedmr-merge-push-")
    lock = os.open(staging, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def _take(source: Path, target: Path) -> None:
    link_or_copy(source, target)
    if not S_ISREG(target.lstat().st_mode):
        raise HubError(f"{source}: became a link while it was gathered")


def _hashed(path: Path, name: str) -> PushFile:
    size = path.stat().st_size
    sha256, git_sha1 = hashlib.sha256(), git_blob_digest(size)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            sha256.update(piece)
            git_sha1.update(piece)
    return PushFile(name, size, sha256.hexdigest(), git_sha1.hexdigest())
