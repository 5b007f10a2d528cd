"""Write a lineage: one line for each output tensor, in bounded memory however many there are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fedmr_merge
from fedmr_merge.checkpoint.writer import dumps, replaced_file
from fedmr_merge.lineage.model import FORMAT_VERSION, LINEAGE_FILE, Lineage, TensorOrigin
from fedmr_merge.lineage.reader import open_document

#: Outputs up to this size are hashed at once. A hash more than doubles the processor time of a copy in memory
#: (docs/benchmarks.md): a fifth of a second at this size, and a cost that users merging large models should opt in to.
HASHED_AT_ONCE_BYTES = 256 << 20


def write_lineage(path: Path, facts: Mapping[str, Any], tensors: Iterable[TensorOrigin]) -> None:
    """Write a new lineage file.

    `facts` are its members other than `tensors`, in their order; an iterator among them becomes a list.
    """
    head = {"format_version": FORMAT_VERSION, "made_by": f"fedmr-merge {fedmr_merge.__version__}", **facts}
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(lineage_lines(head, (origin._asdict() for origin in tensors)))


def record_hashes(lineage: Lineage, outputs: Mapping[int, Mapping[str, str]], mean: Mapping[str, str] | None) -> None:
    """Write the SHA-256 of every tensor of the outputs (by slot) and of the mean into a lineage that lacks them."""
    path = lineage.folder / LINEAGE_FILE
    with path.open("rb") as stream:
        head, _ = open_document(stream)
    if head["global"] is not None:
        head["global"] |= {"sha256": mean}
    tensors = (origin._replace(sha256=outputs[origin.slot][origin.tensor]) for origin in lineage.tensors)
    with replaced_file(path) as text:
        text.writelines(lineage_lines(head, (origin._asdict() for origin in tensors)))


def remove_leftovers(folder: Path) -> None:
    """Remove what a command that was killed while it wrote into a lineage left beside it, where that is possible."""
    with contextlib.suppress(OSError):
        for leftover in folder.glob(f".{LINEAGE_FILE}.*"):
            leftover.unlink(missing_ok=True)


def lineage_lines(head: Mapping[str, Any], tensors: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a lineage file piece by piece: every member of `head` on a line, then every tensor on a line."""
    yield "{\n"
    for key, value in head.items():
        yield f"{dumps(key)}: "
        yield from _value(value)
        yield ",\n"
    yield '"tensors": ['
    for position, tensor in enumerate(tensors):
        yield ",\n" if position else "\n"
        yield dumps(tensor)
    yield "\n]\n}\n"


def _value(value: Any) -> Iterator[str]:
    """Yield the JSON of a value; mappings and iterators part by part, since they can be long."""
    if isinstance(value, Mapping):
        yield "{"
        for position, (key, inner) in enumerate(value.items()):
            yield f"{',' if position else ''}{dumps(key)}:"
            yield from _value(inner)
        yield "}"
    elif isinstance(value, Iterator):
        yield "["
        for position, inner in enumerate(value):
            yield "," if position else ""
            yield from _value(inner)
        yield "]"
    else:
        yield dumps(value)
