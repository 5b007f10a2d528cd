"""Which weights of one folder are the model, by their names: as the library that loads the folder decides it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from fedmr_merge.checkpoint.folder import PICKLE_SUFFIXES, WEIGHTS, is_index
from fedmr_merge.errors import CheckpointError

_VARIANT = re.compile(
    r"(?:model|adapter_model|diffusion_pytorch_model)"
    r"(?:\.([\w-]+)\.safetensors|\.safetensors\.index\.([\w-]+)\.json)"
)
_SHARD_NUMBER = re.compile(r"-[0-9]+-of-[0-9]+(?:\.|\Z)")
_SHOWN = 4
#: The state of a training that transformers and accelerate save beside a model; no library takes it for one.
_TRAINING_STATE = re.compile(
    r"(?:optimizer|scheduler|scaler)(?:_\d+)?\.(?:pt|bin)|training_args\.bin|rng_state(?:_\d+)?\.pth"
    r"|random_states_\d+\.pkl"
)


def is_weights(name: str) -> bool:
    """Return whether a name is that of a weight file or of a shard index."""
    return name.endswith(WEIGHTS) or is_index(name)


def may_hold_weights(path: Path) -> bool:
    """Return whether a file may hold weights, by its name or by how it begins; pickles may, and are refused by name."""
    if _TRAINING_STATE.fullmatch(path.name):
        return False
    if is_weights(path.name) or path.suffix in PICKLE_SUFFIXES:
        return True
    try:
        with path.open("rb") as stream:
            start, nbytes = stream.read(9), path.stat().st_size
    except OSError:
        return True  # opening it says what is wrong
    return start[8:] == b"{" and 8 + int.from_bytes(start[:8], "little") <= nbytes


def shard_order(shard: str) -> str:
    """Return what sorts shards by their number; others, e.g. those of a store, named by their bytes, stay as the index
    lists them, which is the same for all models of a store.
    """
    return shard if _SHARD_NUMBER.search(shard) else ""


def choose_weights(place: Path, files: Sequence[str]) -> str | None:
    """Return the weight file or the shard index, among a folder's files, that the folder's library would load; None
    where there is neither.

    Raises CheckpointError, for the folder `place`, where several could be meant.
    """
    names = sorted(filter(is_weights, files))
    variants = sorted({variant for variant in map(_variant, names) if variant})
    for variant in ("", *variants):
        found = next((name for name in _in_order(variant) if name in names), None)
        if found and variant and len(variants) > 1:
            _refuse_several(place, list(filter(_variant, names)), "variants, and none without a variant")
        if found:
            return found
    indexes = list(filter(is_index, names))
    if len(indexes) > 1:
        _refuse_several(place, indexes, "indexes, none of a standard name")
    weights = [name for name in names if not is_index(name)]
    if len(weights) > 1 and not indexes:
        raise CheckpointError(
            place,
            f"{len(weights)} weight files and no index: {_shown(weights)}",
            hint=f"if each is a model, name them, {place}/*{WEIGHTS}; if they are shards, add their "
            "model.safetensors.index.json",
        )
    return next(iter(indexes or weights), None)


def _in_order(variant: str) -> Iterator[str]:
    """Yield the standard names of a variant, in the order in which the libraries look for them.

    transformers (`PreTrainedModel.from_pretrained`) takes the one file before an index, diffusers
    (`ModelMixin.from_pretrained`) the index before the one file.
    """
    dot = f".{variant}" if variant else ""
    for stem in ("model", "adapter_model"):
        yield f"{stem}{dot}.safetensors"
        yield f"{stem}.safetensors.index{dot}.json"
    yield f"diffusion_pytorch_model.safetensors.index{dot}.json"
    yield f"diffusion_pytorch_model{dot}.safetensors"


def _variant(name: str) -> str:
    """Return the variant that a standard name names, `fp16`; nothing for any other name."""
    match = _VARIANT.fullmatch(name)
    variant = (match[1] or match[2]) if match else ""
    return "" if _SHARD_NUMBER.search(variant) else variant


def _refuse_several(place: Path, names: Sequence[str], what: str) -> NoReturn:
    raise CheckpointError(
        place, f"several {what}: {_shown(names)}", hint=f"name one of them, such as {place / names[0]}"
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
