"""Are these K checkpoints of one architecture? Everything that differs is reported at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedmr_merge.checkpoint.folder import PIPELINE
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.errors import Difference, LayerMismatchError, PlanError

#: What may differ between the configurations of models of one architecture: where they came from, how they were
#: initialised and trained, and how they are run.
_IGNORED_KEYS = frozenset(
    {
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "gradient_checkpointing",
        "initializer_factor",
        "initializer_range",
        "library_version",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_IGNORED_PATTERN = re.compile(r"_(?!class_name\Z).*|unsloth_.*|.*(?:dropout|pdrop|layerdrop|drop_path).*")
#: What may differ between the settings of adapters: bookkeeping, how they were trained or run, and where their
#: training started. What of it changes shapes shows there.
_IGNORED_OF_ADAPTERS = frozenset(
    {
        *("auto_mapping", "inference_mode", "peft_version", "revision", "task_type"),
        *("beta1", "beta2", "deltaT", "init_r", "orth_reg_weight", "target_r", "tfinal", "tinit", "total_step"),
        *("corda_config", "d_initial", "eva_config", "loftq_config", "lora_ga_config", "velora_config"),
        *("auxiliary_loss_weight", "ephemeral_gpu_offload", "megatron_config", "megatron_core", "progressbar"),
        *("qalora_group_size", "runtime_config", "runtime_offload_base_weight"),
        *("tokenizer_kwargs", "tokenizer_name_or_path"),
    }
)
_IGNORED_PATTERN_OF_ADAPTERS = re.compile(r"init_.*_(?:bound|std)|prompt_tuning_init.*|asa_.*|.*_warmup")
#: How an adapter's weights were first filled. Other ways than these change the base model's weights as well, or what
#: the adapter's mean.
_INITIALISED = re.compile(r"init_(?:\w+_)?weights")
_PLAIN_STARTS = (True, False, "eva", "gaussian", "kaiming_uniform", "orthogonal", "xavier_uniform", "zero")
_ADAPTER = "adapter_config.json"
_CONFIGS = ("config.json", PIPELINE, _ADAPTER)
_SHOWN_CHARACTERS = 200


def match_checkpoints(
    checkpoints: Sequence[Checkpoint],
    require_equal: Mapping[str, Sequence[str]] | None = None,
    ignore_config: Collection[str] = (),
) -> None:
    """Check that the models have the same tensors, dtypes, shapes and configuration, whatever their order and sharding.

    `require_equal` names further JSON sidecars and the keys in them that must agree, `ignore_config` keys that need
    not. Raises PlanError for fewer than two models and LayerMismatchError with every difference from slot 0.
    """
    if len(checkpoints) < 2:
        raise PlanError(
            f"merging needs two models or more, found {len(checkpoints)}",
            hint="name K checkpoints of one architecture",
        )
    first = checkpoints[0]
    configs = [_configuration(checkpoint, require_equal or {}, ignore_config) for checkpoint in checkpoints]
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


def _configuration(
    checkpoint: Checkpoint, require_equal: Mapping[str, Sequence[str]], ignored: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Return sidecar -> key -> value of everything in the configuration that must agree."""
    found: dict[str, dict[str, Any]] = {}
    for sidecar in checkpoint.sidecars:
        name = sidecar.rpartition("/")[2]
        if (name not in _CONFIGS and name not in require_equal) or name in ignored:
            continue
        content = checkpoint.read_json(sidecar)
        if isinstance(content, dict):
            wanted = require_equal.get(name, ())
            kept = {k: v for k, v in content.items() if k in wanted}
            if name == _ADAPTER:
                kept |= _adapter(content)
            elif not wanted:
                kept = _architecture(content)
            found[sidecar] = {key: value for key, value in kept.items() if not _is_named(key, ignored)}
    return found


def _architecture(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what matters of a config.json; keys of a part of it, such as `text_config`, come with its name."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if key in _IGNORED_KEYS or _IGNORED_PATTERN.fullmatch(key):
            continue
        if key.endswith("config") and isinstance(value, dict):
            found |= {f"{key}.{inner}": part for inner, part in _architecture(value).items()}
        else:
            found[key] = value
    return found


def _adapter(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what matters of an adapter_config.json."""
    patterns = (_IGNORED_PATTERN, _IGNORED_PATTERN_OF_ADAPTERS)
    return {
        key: value
        for key, value in content.items()
        if key not in _IGNORED_OF_ADAPTERS and not any(pattern.fullmatch(key) for pattern in patterns)
    }


def _is_named(key: str, names: Collection[str]) -> bool:
    """Whether a key, its last part or a part that it lies in is among the names."""
    parts = key.split(".")
    return parts[-1] in names or any(".".join(parts[:end]) in names for end in range(1, len(parts) + 1))


def _config_differences(
    slot: int, first: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]]
) -> list[Difference]:
    found = []
    for sidecar in sorted(first.keys() | other.keys()):
        here, there = first.get(sidecar), other.get(sidecar)
        if sidecar.rpartition("/")[2] == _ADAPTER and (here is None or there is None):
            # Without it nobody knows by what the adapter is scaled.
            words = ("absent", "present") if here is None else ("present", "absent")
            found.append(Difference(slot, sidecar, *words, is_config=True))
            continue
        if not first or not other:  # a bare weight file beside a folder says nothing that could differ
            continue
        here, there = here or {}, there or {}
        found += [
            Difference(slot, f"{sidecar}: {key}", _shown(here, key), _shown(there, key), is_config=True)
            for key in sorted(here.keys() | there.keys())
            if _differ(here, there, key)
        ]
    return found


def _differ(here: Mapping[str, Any], there: Mapping[str, Any], key: str) -> bool:
    if key in here and key in there:
        return bool(_comparable(key, here[key]) != _comparable(key, there[key]))
    # A version of a library that knows a key writes it though it is not used.
    value = _comparable(key, here[key] if key in here else there[key])
    return not (value is None or value is False or value in ("", [], {}))


def _comparable(key: str, value: Any) -> Any:
    if _INITIALISED.fullmatch(key) and value in _PLAIN_STARTS:
        return None
    # Libraries write lists of module names in no fixed order.
    return sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


def _shown(config: Mapping[str, Any], key: str) -> str:
    if key not in config:
        return "absent"
    text = repr(config[key])
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} …"
