"""Read a lineage and check it: whatever the file holds, it is a `Lineage` or one clear error.

The memory that this takes is bounded by the size of the file, and what the file holds compressed is never unpacked to
more than a small multiple of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from fedmr_merge.checkpoint.header import open_regular
from fedmr_merge.checkpoint.json_reader import named_once, refuse_surrogates
from fedmr_merge.errors import CheckpointError, PlanError, VerificationError
from fedmr_merge.layers.plan import RecombinationPlan
from fedmr_merge.lineage.checks import check_lineage, whole_number
from fedmr_merge.lineage.model import (
    AVERAGE,
    FORMAT_VERSION,
    LINEAGE_FILE,
    RECOMBINE,
    Lineage,
    Origins,
    TensorOrigin,
)
from fedmr_merge.lineage.parents import Parent, Unpacking, read_parent

_OWN_FIELDS = ("operation", "sources", "outputs", "global", "tensors")  #: of the file, in `Lineage` by name
_DAMAGED = "take the file from a copy, or recombine again: it is of use only as `fedmr-merge` wrote it"
_BEGIN = b"{\n"
_FIRST_TENSOR = b'"tensors": [\n'
_END = b"\n]\n}\n"
_LARGEST_WHOLE_BYTES = 1 << 30  #: of a file that is not laid out line by line

#: What reading a damaged lineage can raise.
_FAULTS = (LookupError, AttributeError, TypeError, ValueError, ArithmeticError, RecursionError, zlib.error)


def read_lineage(out: str | Path) -> Lineage:
    """Read the lineage in the output folder of a recombination or an average.

    Raises VerificationError when there is none, or it is damaged.
    """
    folder = Path(out)
    with _reading(folder / LINEAGE_FILE) as (head, entries, unpacking):
        head.pop("groups", None)  # every tensor names its group, and this list of them takes as much memory
        plan = RecombinationPlan.from_json(head.pop("plan"))
        return _lineage(folder, head, plan, Origins(TensorOrigin(**entry) for entry in entries), unpacking)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[tuple[dict[str, Any], Iterator[Any], Unpacking]]:
    """Open a lineage for the length of a block; every error in the block that damage can cause is a clear one.

    Yields the members other than `tensors`, the tensors one by one, and what unpacks its headers and indexes.
    """
    try:
        with _open(path) as stream:
            nbytes = os.fstat(stream.fileno()).st_size
            head, entries = open_document(stream)
            if head.get("format_version") != FORMAT_VERSION:
                raise VerificationError(f"{path}: it is not a lineage of format version {FORMAT_VERSION}")
            yield head, entries, Unpacking(nbytes)
    except _NotAFileError as error:
        raise VerificationError(str(error), hint=error.hint) from error
    except OSError as error:
        raise VerificationError(
            f"{path}: cannot be read: {error.strerror}", hint="name the folder that `fedmr-merge recombine` wrote"
        ) from error
    except (*_FAULTS, CheckpointError, PlanError) as error:
        reason = f"the member {error} is missing" if isinstance(error, KeyError) else str(error)
        raise VerificationError(f"{path}: damaged: {reason:.300}", hint=_DAMAGED) from error


def read_parents(out: Path) -> tuple[Parent, ...]:
    """Read what the lineage in an output folder says of the inputs. Raises VerificationError as `read_lineage` does."""
    with _reading(out / LINEAGE_FILE) as (head, _, unpacking):
        sources = head["sources"]
        head.clear()  # its other members can take more memory than all headers
        return tuple(read_parent(parent, unpacking) for parent in sources)


def read_plan(path: Path) -> RecombinationPlan:
    """Read the plan in a file of its own, or in a lineage. Raises PlanError when there is none, or it is damaged."""
    try:
        with _open(path) as stream:
            content, _ = open_document(stream)
        return RecombinationPlan.from_json(content.get("plan", content))
    except (OSError, ValueError, RecursionError, PlanError, CheckpointError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise PlanError(
            f"{path}: {'nested too deeply' if isinstance(error, RecursionError) else reason}",
            hint="name a plan, or the lineage.json that `fedmr-merge recombine` wrote",
        ) from error


class _NotAFileError(CheckpointError):
    """A pipe or a device, from which reading could wait forever."""


def _open(path: Path) -> BufferedReader:
    try:
        return BufferedReader(open_regular(path))
    except CheckpointError as error:
        raise _NotAFileError(error.path, error.reason, hint=error.hint) from error


def open_document(stream: BinaryIO) -> tuple[dict[str, Any], Iterator[Any]]:
    """Return the members of a lineage file other than `tensors`, and its tensors one by one, not checked.

    A lineage as this package writes it has every tensor on a line of its own and is read line by line. JSON of the same
    content that is laid out in another way is read whole. Raises ValueError where the file is not JSON; the
    iterator raises it where there is no list of tensors. What the values are is left to the caller to check.
    """
    head = _head_of_lines(stream)
    if head is not None:
        return head, _tensors_of_lines(stream)
    whole = _read_whole(stream)
    return whole, _elements(whole.pop("tensors", None))


def _head_of_lines(stream: BinaryIO) -> dict[str, Any] | None:
    """Return the members before `tensors`, with the stream at the first tensor; None for another layout."""
    if stream.seek(0, os.SEEK_END) < len(_END):
        return None
    stream.seek(-len(_END), os.SEEK_END)
    if stream.read() != _END:  # `tensors` is not the last member
        return None
    stream.seek(0)
    if stream.readline() != _BEGIN:
        return None
    head: dict[str, Any] = {}
    for line in stream:
        if line == _FIRST_TENSOR:
            return head
        if not line.endswith(b",\n"):
            return None
        try:
            member = _parse(b"{" + line[:-2] + b"}")
        except ValueError:  # a member that takes several lines
            return None
        if "tensors" in member or head.keys() & member.keys():
            return None
        head |= member
    return None


def _tensors_of_lines(stream: BinaryIO) -> Iterator[Any]:
    count = 0
    for line in stream:
        if line == b"]\n":
            return
        try:
            tensors = _parse(b"[" + line.rstrip().removesuffix(b",") + b"]", list)
        except ValueError:  # a tensor that takes several lines
            yield from islice(_elements(_read_whole(stream).get("tensors")), count, None)
            return
        yield from tensors
        count += len(tensors)


def _read_whole(stream: BinaryIO) -> dict[str, Any]:
    nbytes = stream.seek(0, os.SEEK_END)
    if nbytes > _LARGEST_WHOLE_BYTES:
        raise ValueError(f"it is not laid out line by line, and {nbytes:,} bytes are too many to read at once")
    stream.seek(0)
    content: dict[str, Any] = _parse(stream.read())
    return content


def _elements(tensors: Any) -> Iterator[Any]:
    if not isinstance(tensors, list):
        raise ValueError("its `tensors` are not a list")
    yield from tensors


def _parse(content: bytes, kind: type = dict) -> Any:
    text = content.decode("utf-8")
    value = json.loads(text, object_pairs_hook=named_once, parse_constant=_refuse_constant)
    refuse_surrogates(text, value)
    if not isinstance(value, kind):
        raise ValueError(f"expected {'an object' if kind is dict else 'a list'}, found {value!r:.40}")
    return value


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"it holds {word}, which is not JSON")


def _lineage(
    folder: Path, content: Mapping[str, Any], plan: RecombinationPlan, tensors: Origins, unpacking: Unpacking
) -> Lineage:
    lineage = Lineage(
        folder=folder,
        operation=content.get("operation", RECOMBINE),
        facts={key: value for key, value in content.items() if key not in _OWN_FIELDS},
        plan=plan,
        parents=tuple(read_parent(parent, unpacking) for parent in content["sources"]),
        outputs=_outputs(content["outputs"]),
        mean=content["global"],
        tensors=tensors,
    )
    if lineage.operation not in (RECOMBINE, AVERAGE):
        raise ValueError(f"its operation, {lineage.operation!r:.40}, is neither {RECOMBINE} nor {AVERAGE}")
    if lineage.operation == AVERAGE and (lineage.mean is None or lineage.outputs or len(tensors)):
        raise ValueError("an average has a mean, and no other output")
    for member in ("made_by", "rule", "rule_found") if lineage.operation == RECOMBINE else ("made_by",):
        lineage.facts[member]  # every lineage has it, and cards show it
    check_lineage(lineage)
    return lineage


def _outputs(content: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for output in content:
        slot, path = whole_number(output["slot"]), str(output["path"])
        if slot in found or path in found.values():
            raise ValueError(f"its output {path!r:.80} of slot {slot} is listed twice")
        found[slot] = path
    return found
