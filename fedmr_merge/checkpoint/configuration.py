"""Compare the configurations of models in what matters: what means the same is equal, however it is written."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedmr_merge.checkpoint.folder import PIPELINE
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.errors import Difference

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
#: What a key means where it is absent: in a module of sentence-transformers what its older versions do not write, and
#: what transformers 4 leaves out of a file as its default.
_WHERE_ABSENT = {
    "include_prompt": (True,),
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding",),
    "tie_word_embeddings": (True, False),
}
#: How sentence-transformers before 6 writes the modes of a pooling, in the order in which it concatenates them.
_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_UNNAMED = re.compile(r"label_\d+")  #: a class without a name of its own
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
_ROPES_OF_PRETRAINED_LENGTH = ("llama3", "yarn", "longrope")


def read_configuration(
    checkpoint: Checkpoint, require_equal: Mapping[str, Sequence[str]], ignored: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Return sidecar → key → value of everything in the configuration that must agree.

    `require_equal` maps names of JSON files to the keys of them that must agree too. Raises CheckpointError for a file
    that is not JSON.
    """
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
    for key, value in _in_one_writing(content).items():
        if key in _IGNORED_KEYS or _IGNORED_PATTERN.fullmatch(key):
            continue
        if key.endswith("config") and isinstance(value, dict):
            found |= {f"{key}.{inner}": part for inner, part in _architecture(value).items()}
        else:
            found[key] = value
    return found


def _in_one_writing(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json as transformers 5, or sentence-transformers 6, would write it, whichever version wrote it.

    What follows from other keys is left out.
    """
    content = _pooling(content)
    found = {key: value for key, value in content.items() if key not in _ROPE} | _rope(content)
    heads, width, layers = (content.get(k) for k in ("num_attention_heads", "hidden_size", "layer_types"))
    if heads is not None and content.get("num_key_value_heads") == heads:
        del found["num_key_value_heads"]
    if isinstance(heads, int) and isinstance(width, int) and heads and content.get("head_dim") == width // heads:
        del found["head_dim"]
    if isinstance(layers, list) and all(layer == "full_attention" for layer in layers):
        del found["layer_types"]
    if "id2label" in content:
        found.pop("label2id", None)
    return found


def _pooling(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config.json of a pooling with the keys of sentence-transformers 6; any other one as it is."""
    modes = _POOLING_MODES.keys() & content.keys()
    found = {key: value for key, value in content.items() if key not in modes}
    if modes and "pooling_mode" not in found:
        active = [mode for key, mode in _POOLING_MODES.items() if content.get(key)] or ["mean"]
        found["pooling_mode"] = active[0] if len(active) == 1 else active
    if "pooling_mode" in found and "word_embedding_dimension" in found:
        found.setdefault("embedding_dimension", found.pop("word_embedding_dimension"))
    return found


def _rope(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary embeddings of a config.json, a key for each parameter.

    transformers 4 writes `rope_theta`, `rope_scaling` and `partial_rotary_factor`, transformers 5 all of it in
    `rope_parameters` (its `standardize_rope_params`).
    """
    named = content.get("rope_parameters") or content.get("rope_scaling") or {}
    if not isinstance(named, dict) or any(isinstance(value, dict) for value in named.values()):
        return {key: content[key] for key in _ROPE if key in content}  # of each kind of layer its own
    rope = {key: value for key, value in named.items() if key != "type"}
    rope = {key: content[key] for key in ("rope_theta", "partial_rotary_factor") if key in content} | rope
    if not rope and not named:
        return {}
    kind = named.get("rope_type", named.get("type", "default"))
    rope["rope_type"] = "default" if kind == "mrope" else kind
    if kind in _ROPES_OF_PRETRAINED_LENGTH:
        length = content.get("original_max_position_embeddings", content.get("max_position_embeddings"))
        rope.setdefault("original_max_position_embeddings", length)
    return {f"rope_parameters.{key}": value for key, value in rope.items()}


def _adapter(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what matters of an adapter_config.json."""
    patterns = (_IGNORED_PATTERN, _IGNORED_PATTERN_OF_ADAPTERS)
    return {
        key: _sorted_names(value)
        for key, value in content.items()
        if key not in _IGNORED_OF_ADAPTERS and not any(pattern.fullmatch(key) for pattern in patterns)
    }


def _sorted_names(value: Any) -> Any:
    """Return a list of names in order, as PEFT writes them in none: lists of modules are sets there."""
    return sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


def _is_named(key: str, names: Collection[str]) -> bool:
    """Return whether a key, its last part or a part that it lies in is among the names."""
    parts = key.split(".")
    return parts[-1] in names or any(".".join(parts[:end]) in names for end in range(1, len(parts) + 1))


def config_differences(
    slot: int, first: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]], reference: int = 0
) -> list[Difference]:
    """Return where the configuration of a slot differs from the first one, that of the slot `reference`.

    Both are as `read_configuration` returns them.
    """
    found = []
    for sidecar in sorted(first.keys() | other.keys()):
        here, there = first.get(sidecar), other.get(sidecar)
        if sidecar.rpartition("/")[2] == _ADAPTER and (here is None or there is None):
            # It alone says by what the adapter is scaled.
            words = ("absent", "present") if here is None else ("present", "absent")
            found.append(Difference(slot, sidecar, *words, is_config=True, reference=reference))
            continue
        if not first or not other:  # a bare weight file beside a folder says nothing that could differ
            continue
        here, there = here or {}, there or {}
        found += [
            Difference(slot, f"{sidecar}: {key}", _shown(here, key), _shown(there, key), True, reference=reference)
            for key in sorted(here.keys() | there.keys())
            if _differ(here, there, key)
        ]
    return found


def _differ(here: Mapping[str, Any], there: Mapping[str, Any], key: str) -> bool:
    last = key.rpartition(".")[2]
    if key in here and key in there:
        if last == "id2label":
            return not _are_same_classes(here[key], there[key])
        return bool(_comparable(key, here[key]) != _comparable(key, there[key]))
    # A version of a library that knows a key writes it though it is not used.
    value = _comparable(key, here[key] if key in here else there[key])
    if last in _WHERE_ABSENT and value is not None:
        return value not in _WHERE_ABSENT[last]
    if last == "id2label":
        return False
    return not (value is None or value is False or value in ("", [], {}))


def _are_same_classes(here: Any, there: Any) -> bool:
    """Return whether two lists of classes can mean the same: a class that one of them does not name is any class."""
    if not isinstance(here, dict) or not isinstance(there, dict):
        return bool(here == there)
    names, others = ({str(k): str(v).casefold() for k, v in classes.items()} for classes in (here, there))
    return names.keys() == others.keys() and all(
        name == others[k] or _UNNAMED.fullmatch(name) or _UNNAMED.fullmatch(others[k]) for k, name in names.items()
    )


def _comparable(key: str, value: Any) -> Any:
    return None if _INITIALISED.fullmatch(key) and value in _PLAIN_STARTS else value


def _shown(config: Mapping[str, Any], key: str) -> str:
    if key not in config:
        return "absent"
    text = repr(config[key])
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} …"
