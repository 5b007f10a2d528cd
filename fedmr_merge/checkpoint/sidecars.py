"""The files beside a model's weights, by their names: config, tokenizer, templates and what else its library needs."""

from __future__ import annotations

import re

from fedmr_merge.checkpoint.folder import PICKLE_SUFFIXES, WEIGHTS, is_index

CHAT_TEMPLATES = "additional_chat_templates"  #: transformers' folder of more templates
#: Files that are copied with the weights; everything else in a folder is not.
_SUFFIXES = (
    *(".json", ".jsonl", ".txt", ".jinja", ".yaml", ".yml", ".py"),
    *(".model", ".tiktoken", ".vocab", ".spm", ".codes", ".bpe", ".tokenizer"),  # of tokenizers
)
#: Records of what a folder was before: they would not be true of an output.
_RECORDS = ("lineage.json", "verification.json")
#: Files that are not missed beside recombined weights: hidden ones, documents and pictures for readers, logs, and the
#: same weights for other libraries.
_NOT_MISSED = re.compile(
    r"\..*|readme.*|events\.out\..*|.*\.(?:md|rst|pdf|html|ipynb|png|jpe?g|gif|svg|webp|wav|mp[34]|log|lock|"
    r"h5|msgpack|ot|onnx|gguf|tflite|xml)",
    re.IGNORECASE,
)


def is_sidecar(name: str) -> bool:
    """Return whether a file of this name is copied with a model's weights.

    Indexes do not: they are written anew, or are those of pickled weights.
    """
    return _is_known(name) and not is_index(name) and not name.endswith(".bin.index.json") and name not in _RECORDS


def is_missed(name: str) -> bool:
    """Return whether somebody may miss a file that is not copied: it is not weights, which have messages of their
    own, and not evidently useless beside an output.
    """
    return not (_is_known(name) or name.endswith((WEIGHTS, *PICKLE_SUFFIXES)) or _NOT_MISSED.fullmatch(name))


def _is_known(name: str) -> bool:
    # Mistral's tokenizers end in their version, tokenizer.model.v3.
    return name.endswith(_SUFFIXES) or name.startswith(("LICENSE", "NOTICE", "tokenizer.model."))
