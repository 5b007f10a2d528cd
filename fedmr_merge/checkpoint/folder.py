"""The folder of a model: how its files are called, and paths that do not lead out of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fedmr_merge.errors import CheckpointError

WEIGHTS = ".safetensors"
INDEX = ".safetensors.index.json"
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


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError when a file's name says that it holds pickled weights."""
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(
            path, "pickled weights can run code when they are loaded and are refused", hint=PICKLE_HINT
        )


def leads_out(name: str) -> bool:
    """Whether a file name from somebody else's JSON could name something outside the folder it stands for."""
    parts = PurePosixPath(name).parts
    return not parts or name.startswith("/") or "\\" in name or any(part in ("..", ".") for part in parts)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of a folder; a name or a link that leads out of the folder is refused."""
    if leads_out(name):
        raise CheckpointError(folder, f"file name {name!r} leads out of the folder")
    if "\0" in name or name != name.encode(errors="ignore").decode():
        raise CheckpointError(folder, f"{name!r} is no file name")
    path = folder / name
    if not any(map(os.path.islink, (path, *(folder / parent for parent in PurePosixPath(name).parents[:-1])))):
        return path  # what to follow links would tell, at a tenth of the price
    target = Path(os.path.realpath(path))  # which takes a loop of links as it is
    if not any(target.is_relative_to(root) for root in _trusted_roots(folder)):
        raise CheckpointError(
            path,
            f"a link that leads out of the folder, to {target}",
            hint="copy the folder with what its links lead to",
        )
    return path


def _trusted_roots(folder: Path) -> Iterator[Path]:
    yield (resolved := folder.resolve())
    # The Hub's cache keeps snapshots/COMMIT/NAME as a link into blobs/ of the same repository.
    for parent in (*folder.absolute().parents, *resolved.parents):
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            yield (parent.parent / "blobs").resolve()


def names_in(folder: Path) -> list[str]:
    """Return the names of the files of a folder, without those of the folders in it."""
    return [entry.name for entry in os.scandir(folder) if not entry.is_dir()]


def weights_in(folder: Path) -> list[str]:
    """Return the names of its weight files, pickled ones included."""
    return [name for name in names_in(folder) if name.endswith((WEIGHTS, *PICKLE_SUFFIXES))]


def read_json(path: Path) -> Any:
    """Return what a JSON file says. Raises CheckpointError when it is not JSON, or cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            path, f"not valid JSON: {error}", hint="fetch it again, or mend it: it would be copied as it is"
        ) from error
