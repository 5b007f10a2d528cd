"""A published model → a torch module, in one line and strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmr_merge.checkpoint.folder import CONFIG_FILE
from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.errors import CheckpointError
from fedmr_merge.hub.listing import parse_hub

if TYPE_CHECKING:
    from fedmr_merge.federated.models.base import Classifier

_MAX_CONFIG_BYTES = 64 << 20
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")


def load_model(source: str | Path, *, endpoint: str | None = None, token: str | None = None) -> Classifier:
    """Return the model of a folder with config.json and safetensors, or of a Hub id
    `org/name[@revision][/subfolder]`, in evaluation mode, on the CPU.

    Only architectures of this package are built, only safetensors are read, every tensor must fit; no code comes from
    the folder. `module(images)` takes float32 images [batch, channels, height, width], normalised with the config's
    `preprocess` (mean and std of pixels scaled to 0..1), and gives logits [batch, classes]. `endpoint` and `token` are
    by default those of the environment.

    Raises CheckpointError when the folder is not such a model, HubError when it cannot be fetched.
    """
    folder = _folder(source, endpoint, token)
    config = read_config(folder)
    checkpoint = open_checkpoint(folder)
    from fedmr_merge.checkpoint.tensors import load_checkpoint
    from fedmr_merge.publish.rebuild import rebuild

    module = rebuild(config, checkpoint.shapes, str(folder / CONFIG_FILE))
    weights = load_checkpoint(checkpoint)
    for name, own in module.state_dict().items():
        if weights[name].is_floating_point() != own.is_floating_point():
            raise CheckpointError(
                checkpoint.path, f"tensor {name!r} is {weights[name].dtype}, the model has {own.dtype} there"
            )
    module.load_state_dict(weights, strict=True)
    return module.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a model folder. Raises CheckpointError when it is not one of this package."""
    path = folder / CONFIG_FILE
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise CheckpointError(path, f"is larger than {_MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            path, f"cannot be read: {error.strerror}", hint="name a folder that a `publish` stage wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("library_name") != "fedmr-merge":
        raise CheckpointError(
            path, "is not the config of a fedmr-merge model", hint="load it with the library that made it"
        )
    if config.get("format_version") != 1:
        raise CheckpointError(
            path, f"format version {str(config.get('format_version'))[:40]!r} is not known", hint="update fedmr-merge"
        )
    asks = next((key for key in _CODE_KEYS if config.get(key)), None)
    if asks is not None:
        raise CheckpointError(path, f"its {asks!r} asks for code of the folder to be run, which is refused")
    return config


def _folder(source: str | Path, endpoint: str | None, token: str | None) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(path, "is a file; a model is a folder with config.json and safetensors")
    if isinstance(source, Path) or parse_hub(source) is None:
        raise CheckpointError(source, "no such folder", hint="name a folder, or org/name[@revision][/subfolder]")
    from fedmr_merge.hub.client import open_hub  # imports huggingface_hub
    from fedmr_merge.hub.snapshot import fetch_model, resolve_hub

    with open_hub(endpoint=endpoint, token=token) as hub:
        return fetch_model(hub, resolve_hub(hub, source))
