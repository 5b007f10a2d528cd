"""Tied tensors: what is one tensor in the model but two in the file must move as one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.tensor_table import TensorEntry

#: Input embedding and output head, as the libraries name them.
KNOWN_TIES = (
    ("model.embed_tokens.weight", "lm_head.weight"),
    ("transformer.wte.weight", "lm_head.weight"),
    ("wte.weight", "lm_head.weight"),
    ("model.language_model.embed_tokens.weight", "lm_head.weight"),
    ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
    ("gpt_neox.embed_in.weight", "embed_out.weight"),
    ("transformer.word_embeddings.weight", "lm_head.weight"),
    ("model.decoder.embed_tokens.weight", "lm_head.weight"),
    ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
    ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"),
    ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ("lm_head.bias", "lm_head.decoder.bias"),
    ("distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),
)
_CHUNK_BYTES = 1 << 20


def find_ties(checkpoints: Sequence[Checkpoint]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Return the sets of tensors that are tied in these models, and those of which nobody knows yet.

    Tensors of known names are tied when the config.json of one of them says `tie_word_embeddings: true`, or when their
    bytes are equal in every model: unknown where they could be, and the bytes of a model are not on this machine.
    """
    first = checkpoints[0]
    found: list[tuple[str, ...]] = []
    unknown: list[tuple[str, ...]] = []
    for prefix in sorted({file.prefix for file in first.files}):
        declared = any(_declared(checkpoint.read_json(f"{prefix}config.json")) for checkpoint in checkpoints)
        for known in KNOWN_TIES:
            names = tuple(prefix + name for name in known if prefix + name in first.tensors)
            alike = len(names) > 1 and len({first.tensors[name].signature for name in names}) == 1
            if alike and (declared or all(c.is_remote or _equal_bytes(c, names) for c in checkpoints)):
                is_known = declared or not any(checkpoint.is_remote for checkpoint in checkpoints)
                (found if is_known else unknown).append(names)
    return found, unknown


def _declared(config: Any) -> bool:
    """Whether a model's config.json, or the part of it for its language model, says that its embeddings are tied."""
    if not isinstance(config, dict):
        return False
    return config.get("tie_word_embeddings") is True or _declared(config.get("text_config"))


def _equal_bytes(checkpoint: Checkpoint, names: Sequence[str]) -> bool:
    entries = [checkpoint.tensors[name] for name in names]
    # zip stops at the first piece that differs: tensors that are not tied cost one read.
    return all(len(set(pieces)) == 1 for pieces in zip(*map(_pieces, entries), strict=True))


def _pieces(entry: TensorEntry) -> Iterator[bytes]:
    with entry.file.open("rb", buffering=0) as stream:
        for start in range(entry.start, entry.end, _CHUNK_BYTES):
            yield os.pread(stream.fileno(), min(_CHUNK_BYTES, entry.end - start), start)
