"""The files beside a model's weights: config, tokenizer, templates and what else its library needs to load it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fedmr_merge.checkpoint.folder import (
    INDEX,
    PICKLE_SUFFIXES,
    PIPELINE,
    WEIGHTS,
    inside,
    leads_out,
    read_json,
    weights_in,
)
from fedmr_merge.errors import CheckpointError

#: Files that are carried along beside the weights; everything else of a folder stays behind.
SIDECAR_SUFFIXES = (
    *(".json", ".jsonl", ".txt", ".jinja", ".yaml", ".yml", ".py"),
    *(".model", ".tiktoken", ".vocab", ".spm", ".codes", ".bpe", ".tokenizer"),  # of tokenizers
)
#: Files that nobody misses beside recombined weights: hidden ones, what is for people, logs, and the same weights for
#: other libraries.
_NOT_MISSED = re.compile(
    r"\..*|readme.*|events\.out\..*|.*\.(?:md|rst|pdf|html|ipynb|png|jpe?g|gif|svg|webp|wav|mp[34]|log|lock|"
    r"h5|msgpack|ot|onnx|gguf|tflite|xml)",
    re.IGNORECASE,
)
CHAT_TEMPLATES = "additional_chat_templates"  #: transformers' folder of more templates
MODULES = "modules.json"  #: sentence-transformers' list of a model's modules, some in folders of their own


def find_sidecars(folder: Path, *, deep: bool) -> Iterator[str]:
    """Yield the files of a model's folder that belong to it beside its weights; those of a pipeline, `deep`, with its
    components' folders.

    Raises CheckpointError where one leads out of the folder, leads nowhere or cannot be read.
    """
    inner = [folder / CHAT_TEMPLATES] if (folder / CHAT_TEMPLATES).is_dir() else []
    inner += [folder / place for place in module_folders(folder) if not weights_in(folder / place)]
    beside = (path for place in (folder, *inner) for path in place.iterdir())
    for path in _all_files(folder, _components(folder)) if deep else beside:
        belongs = is_sidecar(path.name) and not _stays_behind(path.name)
        if not belongs and not (deep and not path.suffix):  # in a pipeline such a link could be one to a component
            continue
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in PurePosixPath(name).parts):
            continue
        if not belongs or not path.is_file():
            _refuse_what_cannot_be_copied(path)
        elif os.access(inside(folder, name), os.R_OK):
            yield name
        else:
            raise CheckpointError(path, "cannot be read", hint="ask for the right to read it, or remove it")


def _stays_behind(name: str) -> bool:
    """Whether it is an index, which is written anew or is one of pickles, or tells of what the folder was before."""
    return name.endswith((INDEX, ".bin.index.json")) or name in ("lineage.json", "verification.json")


def _refuse_what_cannot_be_copied(path: Path) -> None:
    if not path.exists():
        reason = f"a link to {path.readlink()}, where there is nothing"
        raise CheckpointError(path, reason, hint="fetch the model again, or remove the link if it is of no use")
    if not path.is_file() and not path.is_dir():
        raise CheckpointError(path, "not a file, but a pipe or a device", hint="write what it gives to a file")


def _components(folder: Path) -> Collection[str] | None:
    """Return the names of a pipeline's components, None where nothing tells them."""
    index = read_json(folder / PIPELINE) if (folder / PIPELINE).is_file() else None
    return index.keys() if isinstance(index, dict) else None


def _all_files(folder: Path, components: Collection[str] | None) -> Iterator[Path]:
    """Yield what lies in a pipeline's folder and in the folders in it.

    Links are followed too, but one behind the other only where they lead to files: links between many folders would
    lead everywhere by more ways than can be counted. Raises CheckpointError where a component is a link that leads out.
    """
    within = [(folder, False)]
    while within:
        place, is_linked = within.pop()
        for path in place.iterdir():
            if not path.is_dir():
                yield path
            elif not path.is_symlink():
                if not path.name.startswith("."):
                    within.append((path, is_linked))
            elif not is_linked and not folder.resolve().is_relative_to(target := path.resolve()):
                if target.is_relative_to(folder.resolve()):
                    within.append((path, True))
                elif components is None or path.name in components:
                    inside(folder, path.relative_to(folder).as_posix())


def is_sidecar(name: str) -> bool:
    """Whether a file of this name belongs to a model beside its weights."""
    # Mistral's tokenizers end in their version, tokenizer.model.v3.
    return name.endswith(SIDECAR_SUFFIXES) or name.startswith(("LICENSE", "NOTICE", "tokenizer.model."))


def is_missed(name: str) -> bool:
    """Whether a file that does not come along may be missed by who does not know it: it is no weights, which have
    messages of their own, and not evidently of no use.
    """
    name = name.rpartition("/")[2]
    return not (is_sidecar(name) or name.endswith((WEIGHTS, *PICKLE_SUFFIXES)) or _NOT_MISSED.fullmatch(name))


def module_folders(folder: Path) -> list[str]:
    """Return the folders of a model's folder that its modules.json names, where it has one."""
    if not (folder / MODULES).is_file():
        return []
    return [name for name in named_folders(read_json(folder / MODULES)) if (folder / name).is_dir()]


def named_folders(modules: Any) -> list[str]:
    """Return the folders that the content of a modules.json names."""
    listed = [module.get("path") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    return sorted(
        {path for path in listed if isinstance(path, str) and path and "/" not in path and not leads_out(path)}
    )
