"""How a model of the trainer lies in its folder: its weights, and the JSON files that say what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fedmr_merge.checkpoint.folder import CONFIG_FILE
from fedmr_merge.checkpoint.tensors import save_tensors
from fedmr_merge.federated.cohort import Weights
from fedmr_merge.federated.models.base import Architecture, checkpoint_metadata, model_config


def write_model(
    folder: Path, architecture: Architecture, module: nn.Module, weights: Weights, about: Mapping[str, Any]
) -> None:
    """Write a model into a folder that exists; `about` is what the task says of it, see `Task.config`."""
    save_tensors(folder / architecture.weights_file, weights, checkpoint_metadata(architecture, module))
    found = architecture.of_weights(module, weights)
    files = {CONFIG_FILE: model_config(found, module, about), **found.sidecars(module)}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
