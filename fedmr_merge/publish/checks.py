"""What must be true of the files before anything is sent.

No pickle, nothing that identifies this machine, and weights and a card that are valid.
"""

from __future__ import annotations

import getpass
import math
import os
import re
import socket
import sys
import tempfile
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedmr_merge.checkpoint.header import read_header
from fedmr_merge.errors import CheckpointError, FedmrMergeError
from fedmr_merge.lineage.model import LINEAGE_FILE
from fedmr_merge.lineage.reader import read_parents
from fedmr_merge.publish.card import CARD_FILE
from fedmr_merge.publish.staging import Staging

_PATH = re.compile(r"(?:(?<=file://)|(?<![\w.~:/\\-]))/[\w.@+~-]+(?:/[\w.@+~-]+)+")
_WINDOWS_PATH = re.compile(r"\b[A-Za-z]:\\{1,2}[\w.~-]+\\[\w\\.~-]+")
_HOMES = re.compile(r"/(?:home|Users|root)/")
_SYSTEM = {"usr", "bin", "sbin", "etc", "dev", "proc", "sys", "lib", "lib64", "boot", "run"}
#: Names that many machines share, and that are common words.
_COMMON = frozenset(
    {
        *("root", "user", "users", "admin", "administrator", "ubuntu", "debian", "runner", "jovyan", "vscode", "colab"),
        *("home", "localhost", "local", "default", "host", "server", "client", "node", "docker", "test", "app"),
        *("work", "worker", "data", "model", "models"),
    }
)
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)|<img[^>]+src=[\"']([^\"']+)")
_SHOWN = 3  # faults of one file


@dataclass(frozen=True)
class Machine:
    """What identifies this machine and its user."""

    folders: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def here(cls, folder: Path, public: Collection[str] = ()) -> Machine:
        """Describe the machine that a folder is pushed from.

        `public` are names that the push makes known anyway, as the namespace of the repository.
        """
        folders = {str(Path.home()), str(Path.cwd()), tempfile.gettempdir(), sys.prefix}
        folders |= {str(folder.absolute().parent), str(folder.resolve().parent)}
        host = socket.gethostname()
        names = {host, host.split(".")[0], _user()}
        known = {name.lower() for name in public} | _COMMON
        return cls(
            tuple(sorted(folder for folder in folders if folder.count("/") > 1 or folder == tempfile.gettempdir())),
            tuple(sorted(name for name in names if len(name) > 2 and name.lower() not in known)),
        )

    def traces(self, text: str) -> Iterator[str]:
        """Yield what in a string identifies this machine."""
        for match in _PATH.finditer(text):
            if self._is_local(match[0]):
                yield f"a path of this machine, {match[0]}"
        for match in _WINDOWS_PATH.finditer(text):
            yield f"a path of a machine, {match[0]}"
        for name in self.names:
            if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text):
                yield f"the name of this machine or its user, {name}"

    def _is_local(self, path: str) -> bool:
        if _HOMES.match(path) or any(path == folder or path.startswith(f"{folder}/") for folder in self.folders):
            return True
        top, second = path.split("/")[1:3]
        return top not in _SYSTEM and os.path.lexists(f"/{top}/{second}")


def find_faults(staging: Staging, machine: Machine) -> list[str]:
    """Return what must be fixed before these files may be sent, one line each."""
    faults = list(staging.faults)
    names = {file.path for file in staging.files}
    for file in staging.files:
        path = staging.folder / file.path
        if file.is_weights:
            found = list(_weight_faults(path, machine))
        elif (pickle := _pickle_inside(path)) is not None:
            found = [pickle]
        else:
            found = list(_text_faults(path, machine))
        if path.name == LINEAGE_FILE:
            found += _lineage_faults(path.parent, machine)
        if file.path == CARD_FILE:
            found += card_faults(path.read_text(encoding="utf-8", errors="replace"), names)
        faults += [f"{file.path}: {fault}" for fault in found[:_SHOWN]]
        if len(found) > _SHOWN:
            faults.append(f"{file.path}: and {len(found) - _SHOWN} more")
    return faults


def card_faults(card: str, files: Collection[str]) -> list[str]:
    """Return what is wrong with a card, for the Hub or for its readers; `files` are those that come with it."""
    from huggingface_hub import ModelCard

    head = re.match(r"---\r?\n(.*?)^---\r?$", card, re.DOTALL | re.MULTILINE)
    if head is None:
        return ["the card has no metadata between --- lines at its start"]
    try:
        metadata = yaml.safe_load(head[1])
        if not isinstance(metadata, dict):
            return ["the card's metadata is not a mapping"]
        ModelCard(card)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        return [f"the card's metadata is not valid: {' '.join(str(error).split())[:200]}"]
    faults = [
        f"the card's metadata holds a number that is not finite, at {place}" for place in _not_finite(metadata, "")
    ]
    licence = metadata.get("license")
    if licence is not None and (not isinstance(licence, str) or not re.fullmatch(r"[a-z0-9.+-]+", licence)):
        faults.append(f"the card's licence is not an identifier of the Hub: {licence!r}")
    for match in _IMAGE.finditer(card):
        image = match[1] or match[2]
        if "://" not in image and not image.startswith("data:") and image.removeprefix("./") not in files:
            faults.append(f"the card shows {image}, which is not among the files")
    return faults


def _not_finite(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield place.lstrip(".")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _not_finite(inner, f"{place}[{number}]")


def _weight_faults(path: Path, machine: Machine) -> Iterator[str]:
    try:
        header = read_header(path)
    except CheckpointError as error:
        yield error.reason
        return
    for key, value in header.metadata.items():
        yield from (f"its metadata {key!r} holds {trace}" for trace in machine.traces(value))


def _lineage_faults(folder: Path, machine: Machine) -> Iterator[str]:
    """Yield the faults of the headers of the parents, which `undo` writes again: the lineage holds them compressed."""
    try:
        parents = read_parents(folder)
    except FedmrMergeError:  # there is no lineage, or it is not of this package
        return
    for parent in parents:
        for file in parent.files:
            for key, value in file.header.metadata.items():
                where = f"the metadata {key!r} of source {parent.slot}"
                yield from (f"{where} holds {trace}" for trace in machine.traces(value))


def _text_faults(path: Path, machine: Machine) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if "\0" in line:
                    return
                yield from (f"line {number} holds {trace}" for trace in machine.traces(line))
    except UnicodeDecodeError:  # a picture, or a tokenizer's table
        return


def _pickle_inside(path: Path) -> str | None:
    with path.open("rb") as stream:
        start = stream.read(2)
    if len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return "is a pickle, which runs code when it is loaded"
    if start == b"PK" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith((".pkl", ".pickle")) for name in archive.namelist()):
                return "holds a pickle, which runs code when it is loaded"
    return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        return ""
