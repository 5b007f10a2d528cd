"""A published model → a torch module, in one line, strictly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedmr_merge.checkpoint.folder import CONFIG_FILE
from fedmr_merge.checkpoint.open import Checkpoint, open_checkpoint
from fedmr_merge.errors import CheckpointError
from fedmr_merge.hub.listing import parse_hub

if TYPE_CHECKING:
    from torch import nn

    from fedmr_merge.federated.models.base import Classifier
    from fedmr_merge.publish.preprocess import Preprocess

    _Module = Classifier
else:
    _Module = object

_MAX_CONFIG_BYTES = 64 << 20
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")


class LoadedModel(_Module):
    """What type checkers know of the result of `load_model`: a torch module, with three attributes of its config."""

    config: dict[str, Any]
    label_names: list[str]
    preprocess: Preprocess


def load_model(
    location: str | Path,
    *,
    model: nn.Module | Callable[..., nn.Module] | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> LoadedModel:
    """Load a published model as a torch module, in evaluation mode and on the CPU.

    Architectures of this package and of installed plug-ins are built, and only safetensors are read; every tensor must
    fit, and no code comes from the folder. A model of another class is loaded with that class, given as `model`.

    Args:
        location: A folder with `config.json` and safetensors, or a Hub id, `org/name[@revision][/subfolder]`.
        model: For a model of your own class: the class, or a function that returns its module, which is called with the
            options that `config.json` records; or a module, which is copied.
        endpoint: The address of the Hub; None is that of `HF_ENDPOINT`.
        token: A token that may read; None is `HF_TOKEN`, or the one that `hf auth login` stored.

    Returns:
        A module that maps float32 images [batch, channels, height, width], or what else the model was trained on, to
        logits [batch, classes], or what else it predicts. Besides, `model.preprocess(image)` turns an image into that
        input (a row of a table, or a text), `model.label_names` are the names of the classes, and `model.config` is the
        content of `config.json`. Attributes of these names that a module of yours has are kept.

    Raises:
        CheckpointError: The folder is not such a model.
        HubError: The model cannot be fetched.

    Examples:
        >>> model = load_model("alice/digits")  # doctest: +SKIP
        >>> model.label_names[model(model.preprocess(image)).argmax()]  # doctest: +SKIP
        '7'
    """
    folder = _folder(location, endpoint, token)
    config = read_config(folder)
    checkpoint = open_checkpoint(folder)
    from fedmr_merge.publish.preprocess_rows import preprocess_of
    from fedmr_merge.publish.rebuild import rebuild

    module = rebuild(config, checkpoint.shapes, str(folder / CONFIG_FILE), model)
    _fill(module, checkpoint)
    attributes = {
        "config": config,
        "label_names": config.get("label_names") or [str(number) for number in range(config.get("num_classes", 0))],
        "preprocess": preprocess_of(config, folder),
    }
    for name, value in attributes.items():
        if not hasattr(module, name):
            setattr(module, name, value)
    return cast("LoadedModel", module.eval())


def _fill(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the tensors of a checkpoint, whose shapes are known to fit, into a module."""
    import torch

    from fedmr_merge.checkpoint.tensors import load_checkpoint
    from fedmr_merge.federated.cohort import weights_of

    weights, own = load_checkpoint(checkpoint), weights_of(module)
    for name, tensor in own.items():
        if weights[name].is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(
                checkpoint.path, f"tensor {name!r} is {weights[name].dtype}, the model has {tensor.dtype} there"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


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


def _folder(location: str | Path, endpoint: str | None, token: str | None) -> Path:
    path = Path(location)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(path, "is a file; a model is a folder with config.json and safetensors")
    if isinstance(location, Path) or parse_hub(location) is None:
        raise CheckpointError(location, "no such folder", hint="name a folder, or org/name[@revision][/subfolder]")
    from fedmr_merge.hub.client import open_hub  # imports huggingface_hub
    from fedmr_merge.hub.snapshot import fetch_model, resolve_hub

    with open_hub(endpoint=endpoint, token=token) as hub:
        return fetch_model(hub, resolve_hub(hub, location))
