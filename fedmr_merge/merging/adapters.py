"""Read what LoRA adapters are, before any of their numbers: their scale, their modules, whether they have a mean."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmr_merge.checkpoint.header import open_regular
from fedmr_merge.checkpoint.json_reader import named_once
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.errors import CheckpointError, PlanError
from fedmr_merge.layers.adapter_names import module_of_factor

CONFIG = "adapter_config.json"
#: The two factors of a module: of linear and convolutional layers, and of embeddings.
FACTORS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
#: Kinds and parts of adapters whose sum is not an adapter of that kind, by what the names of their tensors contain.
_NO_EXACT_FORM = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_magnitude_vector": "DoRA's magnitude",
    "vera_lambda": "VeRA",
    "oft_": "OFT",
    "ia3_": "IA³",
    "trainable_tokens": "trainable tokens",
    "lora_B.bias": "a bias of lora_B",
    "lora_variant": "a variant of LoRA",
}
#: Initialisations that leave the base model's own weights as they are.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
_MAX_CONFIG_BYTES = 10_000_000


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter of LoRA's kind."""

    checkpoint: Checkpoint
    config: Mapping[str, Any]
    modules: Mapping[str, tuple[str, str]]  #: module → the names of its A and of its B
    others: tuple[str, ...]  #: tensors beside LoRA's, whole: `modules_to_save`, biases of the base model

    def alpha(self, module: str) -> float:
        """Return `lora_alpha` of a module, which a pattern may set."""
        name = module.removeprefix("base_model.model.")
        for pattern, alpha in (self.config.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", name):
                return float(alpha)
        return float(self.config["lora_alpha"])

    def rank(self, module: str) -> int:
        """Return the rank of a module: the rows of its A."""
        return self.checkpoint.tensors[self.modules[module][0]].shape[0]

    def scale(self, module: str) -> float:
        """Return what the product of a module's factors is multiplied by."""
        return self.alpha(module) / rank_divisor(self.config, self.rank(module))


def rank_divisor(config: Mapping[str, Any], rank: int) -> float:
    """Return what `lora_alpha` is divided by: the rank, or its square root with rank-stabilised LoRA."""
    return math.sqrt(rank) if config.get("use_rslora") else rank


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds factors of an adapter, whose means do not multiply to the mean of the products."""
    return any(module_of_factor(name) for name in checkpoint.tensors)


def has_exact_form(checkpoint: Checkpoint) -> bool:
    """Whether the exact mean can be taken of this adapter."""
    try:
        return bool(read_adapter(checkpoint).modules)
    except (CheckpointError, PlanError):
        return False


def factor_of(name: str) -> str | None:
    """Return the module and the factor, A or B, that a tensor is of PEFT's LoRA; None for any other tensor."""
    for letter, ends in zip("AB", zip(*FACTORS, strict=True), strict=True):
        for end in ends:
            if name.endswith(f".{end}"):
                return f"factor {letter} of {name.removesuffix(f'.{end}')}"
    return None


def mean_entries(tables: Sequence[Mapping[str, TensorEntry]], rank: int | None) -> dict[str, TensorEntry]:
    """Return the tensors that the exact mean of adapters has, with the places of slot 0's.

    The rows of A and the columns of B are those of all adapters together, or `rank` where that is fewer.
    """
    found = dict(tables[0])
    for name, entry in tables[0].items():
        axis = next((axis for axis in (0, 1) if name.endswith(tuple(f".{pair[axis]}" for pair in FACTORS))), None)
        if axis is not None:
            full = sum(table[name].shape[axis] for table in tables)
            size = full if rank is None else min(rank, full)
            found[name] = entry._replace(shape=(*entry.shape[:axis], size, *entry.shape[axis + 1 :]))
    return found


def refuse_other_scales(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise PlanError where adapters are scaled differently: their factors mean something else in each of them."""
    if not is_adapter(checkpoints[0]) or not all(c.is_folder and (c.path / CONFIG).is_file() for c in checkpoints):
        return
    configs = [read_config(checkpoint) for checkpoint in checkpoints]
    for key in ("lora_alpha", "alpha", "use_rslora", "alpha_pattern", "r"):
        values = [config.get(key) or None for config in configs]
        for checkpoint, value in zip(checkpoints, values, strict=True):
            if value != values[0]:
                raise PlanError(
                    f"{checkpoint.location}: {CONFIG} sets {key} to {value!r:.60}, that of slot 0 to "
                    f"{values[0]!r:.60}: the same factors stand for other weights",
                    hint="`fedmr-merge average --exact` rescales adapters; they cannot be recombined",
                )


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the content of an adapter's configuration. Raises CheckpointError when it cannot be read."""
    path = checkpoint.path / CONFIG
    try:
        with open_regular(path) as stream:
            config = json.loads(stream.read(_MAX_CONFIG_BYTES).decode("utf-8"), object_pairs_hook=named_once)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(path, "must be a JSON object")
    return config


def read_adapter(checkpoint: Checkpoint) -> Adapter:
    """Return what is known of an adapter. Raises PlanError or CheckpointError where it has no exact mean."""
    if not checkpoint.is_folder or CONFIG not in checkpoint.sidecars:
        raise PlanError(
            f"{checkpoint.location}: an exact mean is taken of PEFT adapters in folders with their {CONFIG}",
            hint="name the adapter's folder, or leave out --exact and --rank",
        )
    config = read_config(checkpoint)
    _refuse_kinds(checkpoint, config)
    path, alphas = checkpoint.path / CONFIG, config.get("alpha_pattern") or {}
    if not isinstance(alphas, dict) or not all(map(_is_number, (config.get("lora_alpha"), *alphas.values()))):
        raise CheckpointError(path, "lora_alpha and the values of alpha_pattern must be positive numbers")
    try:
        [re.compile(pattern) for pattern in alphas]
    except re.error as error:
        raise CheckpointError(path, f"alpha_pattern: {error}") from error
    modules: dict[str, tuple[str, str]] = {}
    others: list[str] = []
    for name in checkpoint.tensors:
        pair = next((pair for pair in FACTORS if name.endswith(tuple(f".{factor}" for factor in pair))), None)
        if pair is None:
            others.append(name)
            continue
        module = name.removesuffix(pair[0]).removesuffix(pair[1]).removesuffix(".")
        modules[module] = (f"{module}.{pair[0]}", f"{module}.{pair[1]}")
    if not modules:
        raise PlanError(f"{checkpoint.location}: holds no factors of LoRA", hint="leave out --exact and --rank")
    _check_factors(checkpoint, modules)
    return Adapter(checkpoint, config, modules, tuple(others))


def _refuse_kinds(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    hint = "leave out --exact and --rank, or merge each adapter into its base model and average the models"
    kind = config.get("peft_type")
    found = f"peft_type {kind!r:.40}" if kind != "LORA" else None
    for part, what in _NO_EXACT_FORM.items():
        named = next((name for name in checkpoint.tensors if part in name), None)
        found = f"{what} ({named})" if named else found
    if config.get("use_dora"):
        found = "DoRA"
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        found = f"init_lora_weights {config['init_lora_weights']!r:.40}, which changes the base model's weights"
    if found:
        raise PlanError(f"{checkpoint.location}: {found}: adapters of this kind have no exact mean", hint=hint)


def _check_factors(checkpoint: Checkpoint, modules: Mapping[str, tuple[str, str]]) -> None:
    for module, names in modules.items():
        a, b = (checkpoint.tensors.get(name) for name in names)
        if a is None or b is None:
            raise PlanError(f"{checkpoint.location}: module {module} has one factor of LoRA without the other")
        if len(a.shape) < 2 or len(b.shape) < 2 or b.shape[1] != a.shape[0] or any(n != 1 for n in b.shape[2:]):
            raise PlanError(
                f"{checkpoint.location}: the factors of {module}, {a.signature} and {b.signature}, do not multiply"
            )


def check_same_modules(adapters: Sequence[Adapter], ignore_config: Collection[str] = ()) -> None:
    """Raise PlanError where adapters belong to different base models or change different modules."""
    first = adapters[0]
    for adapter in adapters[1:]:
        source = adapter.checkpoint.location
        apart = sorted((first.modules.keys() ^ adapter.modules.keys()) | (set(first.others) ^ set(adapter.others)))
        if apart:
            more = f" and {len(apart) - 1} more" if len(apart) > 1 else ""
            raise PlanError(f"{source}: changes other modules than slot 0: {apart[0]}{more}")
        for key in ("base_model_name_or_path", "fan_in_fan_out", "bias"):
            here, there = first.config.get(key), adapter.config.get(key)
            if here != there and key not in ignore_config:
                raise PlanError(
                    f"{source}: {CONFIG} sets {key} to {there!r:.60}, that of slot 0 to {here!r:.60}",
                    hint=f"--ignore-config {key} if that makes no difference",
                )
        ours, theirs = first.checkpoint.tensors, adapter.checkpoint.tensors
        for module, (a, b) in first.modules.items():
            if ours[a].shape[1:] != theirs[a].shape[1:] or ours[b].shape[0] != theirs[b].shape[0]:
                raise PlanError(f"{source}: module {module} has another shape than in slot 0")
        for name in first.others:
            if ours[name].shape != theirs[name].shape:
                raise PlanError(f"{source}: {name} is {theirs[name].signature}, in slot 0 {ours[name].signature}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf
