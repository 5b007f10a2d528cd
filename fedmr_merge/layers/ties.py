"""Tied tensors: what is one tensor in the model but several in the file must move as one.

Two things show a tie. The config.json says `tie_word_embeddings`, and the tensors have the names that a library gives
to an input embedding and its output head. Or the tensors of each model have equal bytes, whatever their names.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedmr_merge.checkpoint.header import reading, unreadable
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.tensor_table import TensorEntry

Tie = tuple[str, ...]

#: Input embedding and output head, as the libraries name them. What stands before a name (`_WRAPPERS`) is left out.
KNOWN_TIES = (
    ("model.embed_tokens.weight", "lm_head.weight"),
    ("transformer.wte.weight", "lm_head.weight"),
    ("wte.weight", "lm_head.weight"),
    ("backbone.embeddings.weight", "lm_head.weight"),
    ("model.language_model.embed_tokens.weight", "lm_head.weight"),
    ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
    ("gpt_neox.embed_in.weight", "embed_out.weight"),
    ("transformer.word_embeddings.weight", "lm_head.weight"),
    ("model.decoder.embed_tokens.weight", "lm_head.weight"),
    ("model.decoder.embed_tokens.weight", "proj_out.weight"),
    ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
    ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"),
    ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ("lm_head.bias", "lm_head.decoder.bias"),
    ("distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),
)
#: What torch.compile, DistributedDataParallel and Lightning put before all names of a model.
_WRAPPERS = ("", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.")
_MIN_BYTES = 1024  #: smaller tensors of equal bytes may be equal by chance: they are tied under known names only
_SAMPLE_BYTES = 64
_CHUNK_BYTES = 1 << 16
_MAX_OPEN_FILES = 64


def find_ties(checkpoints: Sequence[Checkpoint]) -> tuple[list[Tie], list[Tie]]:
    """Return the sets of tensors that are tied in these models, and those of which it is not known yet.

    Tensors of known names are tied when the config.json of one of the models says `tie_word_embeddings: true`, and
    tensors of any name when their bytes are equal in every model. It is not known yet where they could be tied and the
    bytes of a model are not on this machine.

    Equal bytes are not a sign of a tie where every model has the same ones (masks, position indexes, frozen copies: any
    recombination keeps them equal), where they are constant (fresh biases), or where they are few.
    """
    first = checkpoints[0]
    local = [checkpoint for checkpoint in checkpoints if not checkpoint.is_remote]
    all_local = len(local) == len(checkpoints)
    found: list[Tie] = []
    unknown: list[Tie] = []
    with _Bytes() as files:
        for prefix in sorted({file.prefix for file in first.files}):
            declared = any(_declared(checkpoint.read_json(f"{prefix}config.json")) for checkpoint in checkpoints)
            for names in _known_names(first, prefix):
                if declared or all(files.equal(c, [names]) == [names] for c in local):
                    (found if declared or all_local else unknown).append(names)
            if declared and not all_local:
                unknown += _like_embeddings(checkpoints, prefix)
        if local:
            (found if all_local else unknown).extend(_equal_in_all(local, files))
    known = {frozenset(tie) for tie in found}
    distinct = dict.fromkeys(tie for tie in unknown if frozenset(tie) not in known)
    return list(dict.fromkeys(found)), list(distinct)


def _declared(config: Any) -> bool:
    """Return whether a model's config.json, or its part for the language model, says that its embeddings are tied."""
    if not isinstance(config, dict):
        return False
    return config.get("tie_word_embeddings") is True or _declared(config.get("text_config"))


def _known_names(first: Checkpoint, prefix: str) -> Iterator[Tie]:
    """Yield the sets of tensors of one component that have the names of a known tie and one dtype and shape."""
    for wrapper in _WRAPPERS:
        for known in KNOWN_TIES:
            names = tuple(name for tail in known if (name := f"{prefix}{wrapper}{tail}") in first.tensors)
            if len(names) > 1 and len({first.tensors[name].signature for name in names}) == 1:
                yield names


def _like_embeddings(checkpoints: Sequence[Checkpoint], prefix: str) -> list[Tie]:
    """Return the pairs of matrices of one component that have a row for each token of the vocabulary, one set at most.

    They could be an input embedding and its output head.
    """
    configs = [checkpoint.read_json(f"{prefix}config.json") for checkpoint in checkpoints]
    whole = [config for config in configs if isinstance(config, dict)]
    parts = [*whole, *(part for config in whole if isinstance(part := config.get("text_config"), dict))]
    sizes = [part.get("vocab_size") for part in parts]
    shapes = checkpoints[0].shapes
    names = [n for n, shape in shapes.items() if n.startswith(prefix) and len(shape) == 2 and shape[0] in sizes]
    return [tuple(names)] if len(names) == 2 and shapes[names[0]] == shapes[names[1]] else []


def _equal_in_all(checkpoints: Sequence[Checkpoint], files: _Bytes) -> list[Tie]:
    """Return the sets of tensors whose bytes are equal within each of these models, and which therefore count as tied.

    A few bytes of each tensor are compared first, and all of them only where these are equal.
    """
    alike = _alike(checkpoints[0])
    for sampled in (True, False):
        for checkpoint in checkpoints:
            alike = files.equal(checkpoint, alike, sampled=sampled)
    return [names for names in alike if _is_evidence(names[0], checkpoints, files)]


def _alike(checkpoint: Checkpoint) -> list[Tie]:
    """Return the sets of tensors of one component, dtype and shape that are not small."""
    prefixes = {file.path: file.prefix for file in checkpoint.files}
    sets: defaultdict[tuple[str, str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, entry in checkpoint.tensors.items():
        if entry.nbytes >= _MIN_BYTES:
            sets[prefixes[entry.file], entry.dtype, entry.shape].append(name)
    return [tuple(names) for names in sets.values() if len(names) > 1]


def _is_evidence(name: str, checkpoints: Sequence[Checkpoint], files: _Bytes) -> bool:
    """Return whether a tensor that equals another in each model shows that the two are one."""
    entries = [checkpoint.tensors[name] for checkpoint in checkpoints]
    if all(files.is_constant(entry) for entry in entries):
        return False
    if len(entries) == 1:  # one model does not show which tensors are masks or tables; weights are matrices of floats
        return len(entries[0].shape) > 1 and entries[0].dtype.startswith(("F", "BF"))
    return any(not files.same(entries[0], other) for other in entries[1:])


class _Bytes(ExitStack):
    """Reads the bytes of tensors and keeps files open, up to a bound."""

    def __init__(self) -> None:
        super().__init__()
        self._descriptors: dict[Path, int] = {}

    def equal(self, checkpoint: Checkpoint, sets: Iterable[Tie], *, sampled: bool = False) -> list[Tie]:
        """Return what is left of sets of tensors when those that differ from all others in their set are taken out.

        A set whose tensors are equal in several ways becomes several. With `sampled` only a few bytes are compared.
        """
        return [part for names in sets for part in self._equal(checkpoint, names, sampled)]

    def _equal(self, checkpoint: Checkpoint, names: Tie, sampled: bool) -> list[Tie]:
        entries = {name: checkpoint.tensors[name] for name in names}
        nbytes = entries[names[0]].nbytes
        middle = max(nbytes // 2 - _SAMPLE_BYTES // 2, 0)
        starts = range(middle, middle + 1) if sampled else range(0, nbytes, _CHUNK_BYTES)
        length = _SAMPLE_BYTES if sampled else _CHUNK_BYTES
        parts = [names]
        for start in starts:  # ends at the first piece in which no two are equal
            parts = [
                part
                for names in parts
                for part in _by_content((name, self._read(entries[name], start, length)) for name in names)
            ]
            if not parts:
                break
        return parts

    def same(self, one: TensorEntry, other: TensorEntry) -> bool:
        """Return whether two tensors of one size have the same bytes."""
        return all(
            self._read(one, start, _CHUNK_BYTES) == self._read(other, start, _CHUNK_BYTES)
            for start in range(0, one.nbytes, _CHUNK_BYTES)
        )

    def is_constant(self, entry: TensorEntry) -> bool:
        """Return whether all numbers of a tensor are the same one."""
        size = max(entry.nbytes // max(entry.parameters, 1), 1)
        item = self._read(entry, 0, size)
        pieces = (self._read(entry, start, _CHUNK_BYTES) for start in range(0, entry.nbytes, _CHUNK_BYTES))
        return all(piece == item * (len(piece) // size) for piece in pieces)

    def _read(self, entry: TensorEntry, start: int, length: int) -> bytes:
        descriptor = self._descriptors.get(entry.file)
        if descriptor is None:
            if len(self._descriptors) >= _MAX_OPEN_FILES:
                self.close()
                self._descriptors.clear()
            with reading(entry.file):
                descriptor = self._descriptors[entry.file] = os.open(entry.file, os.O_RDONLY | os.O_CLOEXEC)
            self.callback(os.close, descriptor)
        try:  # not `reading`, which would take longer than a sample
            return os.pread(descriptor, min(length, entry.nbytes - start), entry.start + start)
        except OSError as error:
            raise unreadable(entry.file, error) from error


def _by_content(pieces: Iterable[tuple[str, bytes]]) -> list[Tie]:
    """Return the sets of names that have the same piece, of two names or more."""
    sets: defaultdict[bytes, list[str]] = defaultdict(list)
    for name, piece in pieces:
        sets[piece].append(name)
    return [tuple(names) for names in sets.values() if len(names) > 1]
