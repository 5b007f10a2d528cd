"""Are these K checkpoints of one architecture? Everything that differs is reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedmr_merge.checkpoint.source import Checkpoint
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.errors import Difference, LayerMismatchError, PlanError

#: What may differ between the configurations of models of one architecture: where they came from, and how they are run.
_IGNORED_CONFIG_KEYS = {
    "_commit_hash",
    "_diffusers_version",
    "_name_or_path",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "library_version",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_CONFIGS = ("config.json", "model_index.json")


def match_checkpoints(
    checkpoints: Sequence[Checkpoint], require_equal: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Check that the models have the same tensors, dtypes, shapes and configuration, whatever their order and sharding.

    `require_equal` names further JSON sidecars and the keys in them that must agree.
    Raises PlanError for fewer than two models and LayerMismatchError with every difference from slot 0.
    """
    if len(checkpoints) < 2:
        raise PlanError(
            f"recombination needs two models or more, found {len(checkpoints)}",
            hint="name K checkpoints of one architecture",
        )
    first = checkpoints[0]
    configs = [_configuration(checkpoint, require_equal or {}) for checkpoint in checkpoints]
    differences: list[Difference] = []
    for slot, other in enumerate(checkpoints[1:], start=1):
        differences += tensor_differences(slot, first.tensors, other.tensors)
        differences += _config_differences(slot, configs[0], configs[slot])
    if differences:
        raise LayerMismatchError(differences, [str(checkpoint.source) for checkpoint in checkpoints])


def tensor_differences(
    slot: int, first: Mapping[str, TensorEntry], other: Mapping[str, TensorEntry]
) -> list[Difference]:
    """Return how the tensors of a slot differ from those that are expected, in names, dtypes and shapes."""
    found = []
    for name, entry in first.items():
        there = other.get(name)
        if there is None:
            found.append(Difference(slot, name, entry.signature, "absent"))
        elif (there.dtype, there.shape) != (entry.dtype, entry.shape):
            found.append(Difference(slot, name, entry.signature, there.signature))
    found += [Difference(slot, name, "absent", entry.signature) for name, entry in other.items() if name not in first]
    return found


def _configuration(checkpoint: Checkpoint, require_equal: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return `file: key` -> value of everything in the configuration that must agree; empty where there is no
    sidecar.
    """
    found: dict[str, Any] = {}
    for sidecar in checkpoint.sidecars:
        name = sidecar.rpartition("/")[2]
        if name not in _CONFIGS and name not in require_equal:
            continue
        content = checkpoint.read_json(sidecar)
        if isinstance(content, dict):
            keys = require_equal[name] if name in require_equal else content.keys() - _IGNORED_CONFIG_KEYS
            found |= {f"{sidecar}: {key}": content.get(key) for key in keys}
    return found


def _config_differences(slot: int, first: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    if not first or not other:  # a bare weight file beside a folder says nothing that could differ
        return []
    return [
        Difference(slot, key, _shown(first, key), _shown(other, key))
        for key in sorted(first.keys() | other.keys())
        if _comparable(first.get(key)) != _comparable(other.get(key))
    ]


def _comparable(value: Any) -> Any:
    # Libraries write lists of module names in no fixed order.
    return sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


def _shown(config: Mapping[str, Any], key: str) -> str:
    return repr(config[key]) if key in config else "absent"
