"""A published model → a torch module, in one line and strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmr_merge.errors import CheckpointError

if TYPE_CHECKING:
    from fedmr_merge.federated.architecture import Classifier

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def load_model(source: str | Path) -> Classifier:
    """Return the model of a folder with config.json and model.safetensors, or of a Hub id `org/name[@revision]`, in
    evaluation mode.

    Only architectures of this package are built, only safetensors are read, every tensor must fit; no code comes from
    the folder. `module(images)` takes float32 images [batch, channels, height, width], normalised with the config's
    `preprocess` (mean and std of pixels scaled to 0..1), and gives logits [batch, classes].

    Raises CheckpointError when the folder is not such a model, HubError when it cannot be fetched.
    """
    folder = _folder(source)
    config = read_config(folder)
    from fedmr_merge.checkpoint.tensors import load_tensors
    from fedmr_merge.federated.rebuild import rebuild

    module = rebuild(config, str(folder / CONFIG_FILE))
    weights = load_tensors(folder / WEIGHTS_FILE)
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(folder / WEIGHTS_FILE, f"does not fit its config.json: {reason}") from error
    return module.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a model folder. Raises CheckpointError when it is not one of this package."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            path, f"cannot be read: {error.strerror}", hint="name a folder that `publish` wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("library_name") != "fedmr-merge":
        raise CheckpointError(
            path, "is not the config of a fedmr-merge model", hint="load it with the library that made it"
        )
    if config.get("format_version") != 1:
        raise CheckpointError(
            path, f"format version {config.get('format_version')!r} is not known", hint="update fedmr-merge"
        )
    return config


def _folder(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1:
        raise CheckpointError(source, "no such folder", hint="name a folder, or a Hub id org/name[@revision]")
    from fedmr_merge.checkpoint.hub_source import fetch, resolve_hub

    return fetch(resolve_hub(str(source)))
