"""A trained model of another library, in a folder or on the Hub: found, checked and hashed before it is loaded."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from fedmr_merge.checkpoint.folder import CONFIG_FILE
from fedmr_merge.checkpoint.hashing import file_hash
from fedmr_merge.errors import FedmrMergeError, TrainingError, shown
from fedmr_merge.hub.inputs import is_on_hub, open_inputs
from fedmr_merge.paths import home_expanded


@dataclass(frozen=True)
class Base:
    """A model that training starts from."""

    name: str  #: a folder or a Hub id, as a recipe names it
    folder: Path  #: where its files are on this machine
    weights: tuple[str, ...] = ()  #: the files of its weights
    origin: str | None = field(default=None, compare=False)  #: `org/name@commit` where it came from the Hub

    def sha256(self) -> dict[str, str]:
        """Return the SHA-256 of its weights and, where it has one, its configuration, by file."""
        names = [name for name in (CONFIG_FILE, *self.weights) if (self.folder / name).is_file()]
        return {name: file_hash(self.folder / name, hashlib.sha256()) for name in names}


def open_base(name: str, *, weights: bool = True) -> Base:
    """Find a model, and fetch it where it is on the Hub: safetensors and their configuration, never code or pickles.

    Without `weights`, its configuration is all that is needed. Raises FedmrMergeError.
    """
    path = home_expanded(name)
    if not weights and not is_on_hub(path):
        if not (path / CONFIG_FILE).is_file():
            raise TrainingError(
                f"{shown(name)}: is not a folder with a {CONFIG_FILE}", hint="name a folder, or org/name on the Hub"
            )
        return Base(name, path)
    [found] = open_inputs([path], headers_only=not weights)
    files = tuple(file.name for file in found.files) if weights else ()
    return Base(name, found.path, files, found.origin)


def library(module: str, extra: str, needs: str) -> ModuleType:
    """Import a library. Raises TrainingError, with the extra that brings it, where it is not installed."""
    # Before a library that imports torchvision, whose own import may fail beside another torch.
    importlib.import_module("fedmr_merge.federated.models._torchvision")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TrainingError(
            f"{needs} needs the library {module}: {error}", hint=f"pip install 'fedmr-merge[{extra}]'"
        ) from error


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Within the block, what another library raises is a TrainingError of one line; `what` begins it."""
    try:
        yield
    except FedmrMergeError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise TrainingError(f"{what}: {shown(lines[0], 300)}", hint="--debug shows the traceback") from error


def without_dropout(options: dict[str, Any]) -> dict[str, float]:
    """Return the options of a configuration that are probabilities of dropping something out, each 0."""
    return {name: 0.0 for name, value in options.items() if "drop" in name and isinstance(value, float)}
