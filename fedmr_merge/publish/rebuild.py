"""`config.json` → module: allow-listed architectures, checked options, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fedmr_merge.errors import CheckpointError, FedmrMergeError, shown
from fedmr_merge.federated.catalogue import ARCHITECTURES
from fedmr_merge.federated.cohort import weights_of
from fedmr_merge.federated.models._own import given_model
from fedmr_merge.federated.models.base import Architecture
from fedmr_merge.options import Faults, check_options
from fedmr_merge.own_code import is_import_path
from fedmr_merge.publish.built_for import built_for

Shapes = Mapping[str, tuple[int, ...]]


def rebuild(
    config: Mapping[str, Any],
    shapes: Shapes,
    file: str,
    model: nn.Module | Callable[..., nn.Module] | None = None,
) -> nn.Module:
    """Build the module that a `config.json` describes, with random weights; `file` names it in messages.

    `shapes` are those of the tensors that it is to hold. A config that describes other ones is refused before any
    memory is taken for it: nobody can ask for more than the size of the weights that come along.

    An architecture that is not known here is built by `model`, which the caller gives: no code is imported.

    Raises CheckpointError when the architecture is unknown, an option of it is not possible, or the shapes differ.
    """
    architecture = _architecture(config, file) if model is None else _given(config, file, model)
    shape, outputs = built_for(config, file)
    try:
        if isinstance(model, nn.Module):  # it is there already
            expected = weights_of(model)
        else:
            with torch.device("meta"):  # shapes without memory
                expected = weights_of(architecture.rebuild(config, shape, outputs))
        _check_shapes({name: tuple(tensor.shape) for name, tensor in expected.items()}, shapes, file)
        # Not `initialise`: that may fetch trained weights to start from, which would be overwritten at once.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return architecture.restore(config, shape, outputs)
    except CheckpointError:
        raise
    except (FedmrMergeError, RuntimeError, ValueError, TypeError, OverflowError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(file, f"{architecture.name} cannot be built as it says: {reason}") from error


def _given(config: Mapping[str, Any], file: str, model: nn.Module | Callable[..., nn.Module]) -> Architecture:
    name, options = config.get("architecture"), config.get("arch_args")
    # The options of an architecture of this package are not those of a class that takes its place.
    own = options if is_import_path(name) and name not in ARCHITECTURES and not isinstance(model, nn.Module) else {}
    if not isinstance(own, dict):
        raise CheckpointError(file, f"arch_args must be a mapping, found {str(options)[:80]}")
    try:
        return given_model(model, "model", own)
    except FedmrMergeError as error:
        raise CheckpointError(file, f"its arch_args do not fit the model that was given: {error}") from error


def _architecture(config: Mapping[str, Any], file: str) -> Architecture:
    name, options = config.get("architecture"), config.get("arch_args")
    if is_import_path(name) and name not in ARCHITECTURES:
        found = str(name).rpartition(":")[2].rpartition(".")[2]
        raise CheckpointError(
            file,
            f"its architecture {shown(str(name), 80)} is a user's own code, which is never loaded from a folder or the "
            "Hub",
            hint=f"import {shown(found, 80)} where you have it, and give it: load_model(…, model={shown(found, 80)})",
        )
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES.names())
        raise CheckpointError(file, f"unknown architecture {str(name)[:80]!r}", hint=f"known are {known}")
    if not isinstance(options, dict):
        raise CheckpointError(file, f"arch_args must be a mapping, found {str(options)[:80]}")
    faults = Faults()
    values = check_options(ARCHITECTURES.find(name), options, "arch_args", faults)
    if faults:
        raise CheckpointError(file, "; ".join(map(str, faults)))
    return ARCHITECTURES.find(name)(**values)


def _check_shapes(expected: Shapes, found: Shapes, file: str) -> None:
    different = [
        f"{name}: {_shown(expected.get(name))} by the config, {_shown(found.get(name))} in the weights"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if different:
        more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
        raise CheckpointError(file, "does not fit the weights: " + "; ".join(different[:3]) + more)


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
