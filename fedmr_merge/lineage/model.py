"""The lineage of a recombination: which tensor came from where, byte for byte.

`lineage.json` stands beside the models and is enough to verify them, to undo the recombination and to follow a tensor
back. One line per output tensor, so that it can be read by people and grepped:

    {"slot":0,"tensor":"conv1.weight","group":"conv1","source_slot":2,"source_file":"c.safetensors","start":168,"end":2568,"sha256":"…"}
"""

from __future__ import annotations

import difflib
import math
import os
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TextIO

import fedmr_merge
from fedmr_merge.checkpoint.folder import INDEX, leads_out
from fedmr_merge.checkpoint.header import open_regular
from fedmr_merge.checkpoint.header_json import CHUNK_BYTES, DTYPE_BITS
from fedmr_merge.checkpoint.json_reader import JsonReader
from fedmr_merge.checkpoint.matching import tensor_differences
from fedmr_merge.checkpoint.writer import dumps, replaced_file
from fedmr_merge.errors import CheckpointError, PlanError, VerificationError
from fedmr_merge.layers.plan import RecombinationPlan
from fedmr_merge.lineage.parents import Source, read_source

LINEAGE_FILE = "lineage.json"
FORMAT_VERSION = 1
_OWN_FIELDS = ("plan", "groups", "sources", "outputs", "global", "tensors")  #: of `Lineage`, or told by another
_DIGEST_BYTES = 32
_DAMAGED = "it is as `fedmr-merge recombine` wrote it or of no use: take it from a copy, or recombine again"


class TensorOrigin(NamedTuple):
    """Where one tensor of one output model came from."""

    slot: int
    tensor: str
    group: str
    source_slot: int
    source_file: str  #: name within the source
    start: int  #: byte range in that file
    end: int
    sha256: str | None  #: None until `verify` has compared a recombination that was not hashed at once


class TracedOrigin(NamedTuple):
    """Where a tensor came from, with the place of the source's file."""

    origin: TensorOrigin
    place: str  #: a path, from where the lineage was opened, or `org/name@commit/…` on the Hub
    ends: str | None = None  #: why it is followed no further, though that place is of an earlier recombination


class Origins(Sequence[TensorOrigin]):
    """Where the tensors of all output models came from, in columns: they can be hundreds of thousands."""

    def __init__(self, origins: Iterable[TensorOrigin]) -> None:
        """Raises TypeError, ValueError or OverflowError where an entry is none."""
        self._names: list[str] = []
        self._numbers = array("Q")
        self._digests = bytearray()
        for slot, tensor, group, source_slot, source_file, start, end, sha256 in origins:
            digest = bytes(_DIGEST_BYTES) if sha256 is None else bytes.fromhex(sha256)
            if len(digest) != _DIGEST_BYTES:
                raise ValueError(f"{sha256!r} is no SHA-256")
            self._names += map(sys.intern, (tensor, group, source_file))
            self._numbers.extend((slot, source_slot, start, end))
            self._digests += digest

    def __len__(self) -> int:
        return len(self._digests) // _DIGEST_BYTES

    def __getitem__(self, position: Any) -> Any:
        if not 0 <= position < len(self):
            raise IndexError(position)
        tensor, group, source_file = self._names[3 * position : 3 * position + 3]
        slot, source_slot, start, end = self._numbers[4 * position : 4 * position + 4]
        digest = self._digests[_DIGEST_BYTES * position : _DIGEST_BYTES * (position + 1)]
        sha256 = digest.hex() if any(digest) else None
        return TensorOrigin(slot, tensor, group, source_slot, source_file, start, end, sha256)


@dataclass(frozen=True)
class Lineage:
    """What a recombination's `lineage.json` says."""

    folder: Path
    facts: Mapping[str, Any]  #: seed, rounds, rule …: how the plan was drawn
    plan: RecombinationPlan
    sources: tuple[Source, ...]
    outputs: Mapping[int, str]  #: slot -> path in the folder
    mean: Mapping[str, Any] | None  #: the global model: path, weights, how it was added up, sha256 of every tensor
    tensors: Sequence[TensorOrigin]

    def donor(self, slot: int) -> Source:
        """Return the source whose config and tokenizer the output of a slot got."""
        shared = self.facts.get("sidecars_from")
        return self.sources[slot if shared is None else shared]

    @property
    def hashed(self) -> bool:
        """Whether the SHA-256 of every output tensor is recorded."""
        return all(origin.sha256 is not None for origin in self.tensors)


def record_hashes(lineage: Lineage, outputs: Mapping[int, Mapping[str, str]], mean: Mapping[str, str] | None) -> None:
    """Write the SHA-256 of every tensor of the outputs (by slot) and of the mean into a lineage that lacks them."""
    path = lineage.folder / LINEAGE_FILE
    with path.open("rb") as stream:
        facts = dict(_members(stream, lambda entries: sum(1 for _ in entries)))
    del facts["format_version"], facts["tensors"]
    if facts["global"] is not None:
        facts["global"] |= {"sha256": mean}
    tensors = (origin._replace(sha256=outputs[origin.slot][origin.tensor]) for origin in lineage.tensors)
    with replaced_file(path) as text:
        _write(text, facts, tensors)


def write_lineage(path: Path, facts: Mapping[str, Any], tensors: Iterable[TensorOrigin]) -> None:
    """Write a lineage file, tensor by tensor."""
    with path.open("w", encoding="utf-8") as stream:
        _write(stream, {"made_by": f"fedmr-merge {fedmr_merge.__version__}", **facts}, tensors)


def _write(stream: TextIO, facts: Mapping[str, Any], tensors: Iterable[TensorOrigin]) -> None:
    stream.write("{\n")
    for key, value in {"format_version": FORMAT_VERSION, **facts}.items():
        stream.write(f"{dumps(key)}: ")
        _write_value(stream, value)
        stream.write(",\n")
    stream.write('"tensors": [')
    for position, origin in enumerate(tensors):
        stream.write(",\n" if position else "\n")
        stream.write(dumps(origin._asdict()))
    stream.write("\n]\n}\n")


def _write_value(stream: TextIO, value: Any) -> None:
    """Write a value; mappings and iterators part by part, since they can be long."""
    if isinstance(value, Mapping):
        stream.write("{")
        for position, (key, inner) in enumerate(value.items()):
            stream.write(f"{',' if position else ''}{dumps(key)}:")
            _write_value(stream, inner)
        stream.write("}")
    elif isinstance(value, Iterator):
        stream.write("[")
        for position, inner in enumerate(value):
            stream.write("," if position else "")
            _write_value(stream, inner)
        stream.write("]")
    else:
        stream.write(dumps(value))


def read_lineage(out: str | Path) -> Lineage:
    """Read the lineage of a recombination's output folder.

    Raises VerificationError when there is none, or it is damaged.
    """
    folder = Path(out)
    path = folder / LINEAGE_FILE
    try:
        with open_regular(path) as stream:
            content = dict(_members(stream, Origins))
    except OSError as error:
        raise VerificationError(
            f"{path}: cannot be read: {error.strerror}", hint="name the folder that `fedmr-merge recombine` wrote"
        ) from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise VerificationError(f"{path}: damaged: {error}", hint=_DAMAGED) from error
    if content.get("format_version") != FORMAT_VERSION:
        raise VerificationError(f"{path}: not a lineage of format version {FORMAT_VERSION}")
    try:
        lineage = Lineage(
            folder=folder,
            facts={k: v for k, v in content.items() if k not in _OWN_FIELDS},
            plan=RecombinationPlan.from_json(content["plan"]),
            sources=tuple(read_source(source) for source in content["sources"]),
            outputs=_read_outputs(content["outputs"]),
            mean=content["global"],
            tensors=content["tensors"],
        )
        _check(lineage)
        _check_tensors(lineage)
        _check_mean(lineage)
    except (LookupError, AttributeError, TypeError, ValueError, zlib.error, CheckpointError, PlanError) as error:
        raise VerificationError(f"{path}: damaged: {error}", hint=_DAMAGED) from error
    return lineage


def _members(stream: BinaryIO, tensors: Callable[[Iterator[TensorOrigin]], Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a lineage file says, member by member; `tensors` gets the entries of `tensors` one by one."""
    reader = JsonReader(iter(lambda: stream.read(CHUNK_BYTES), b""))
    for key in reader.members():
        if key == "tensors":
            yield key, tensors(TensorOrigin(**entry) for entry in reader.elements())
        else:
            yield key, reader.value()
    reader.end()


def _read_outputs(content: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for output in content:
        slot, path = int(output["slot"]), str(output["path"])
        if slot in found or path in found.values():
            raise ValueError(f"its output {path!r} of slot {slot} is listed twice")
        found[slot] = path
    return found


def _check(lineage: Lineage) -> None:
    """Raise ValueError where the parts of a lineage do not fit, or a name in it leads out of its folder."""
    names = list(lineage.outputs.values())
    for source in lineage.sources:
        names += [*source.indexes, *source.sidecars, *(file.name for file in source.files)]
    for name in names:
        if leads_out(name):
            raise ValueError(f"the name {name!r} leads out of its folder")
    if [source.slot for source in lineage.sources] != list(range(lineage.plan.slots)):
        raise ValueError("its sources are not one for each slot")
    shared = lineage.facts.get("sidecars_from")
    for slot in (*lineage.outputs, *(() if shared is None else (shared,))):
        if slot not in range(lineage.plan.slots):
            raise ValueError(f"there is no slot {slot!r:.40}")


def _check_tensors(lineage: Lineage) -> None:
    """Raise ValueError where the sources have no tensors, or not the same, or an output's tensor is none of them."""
    known = lineage.sources[0].tensors
    if not known:
        raise ValueError("its sources have no tensors")
    for source in lineage.sources[1:]:
        for difference in tensor_differences(source.slot, known, source.tensors):
            raise ValueError(f"its sources differ: {difference}")
    for origin in lineage.tensors:
        if origin.tensor not in known:
            raise ValueError(f"{origin.tensor!r} of slot {origin.slot} is in none of its sources")
        if origin.slot not in lineage.outputs or origin.group not in lineage.plan.permutations:
            raise ValueError(f"{origin.tensor!r} of slot {origin.slot} is in no output or in no group of the plan")
        if origin.source_slot not in range(lineage.plan.slots):
            raise ValueError(f"{origin.tensor!r} of slot {origin.slot} comes from slot {origin.source_slot}")


def _check_mean(lineage: Lineage) -> None:
    """Raise ValueError where the global model could not have been written so."""
    if lineage.mean is None:
        return
    path, hashes = lineage.mean["path"], lineage.mean.get("sha256")
    weights, dtype = lineage.mean.get("weights"), lineage.mean.get("out_dtype")
    if not isinstance(path, str) or leads_out(path):
        raise ValueError(f"the name {path!r:.40} of its mean leads out of its folder, or is not a name")
    if weights is not None:
        if not isinstance(weights, list) or not all(type(w) in (int, float) and 0 <= w < math.inf for w in weights):
            raise ValueError("the weights of its mean are not a list of numbers of 0 or more")
        if len(weights) != lineage.plan.slots or not any(weights):
            raise ValueError(f"the weights of its mean are not {lineage.plan.slots} numbers, one of them above 0")
    if lineage.mean.get("accumulate") not in ("float32", "float64"):
        raise ValueError(f"its mean was added up in {lineage.mean.get('accumulate')!r:.40}")
    if dtype is not None and dtype not in DTYPE_BITS:
        raise ValueError(f"its mean was written in an unknown dtype, {dtype!r:.40}")
    if hashes is not None and hashes.keys() != set(lineage.sources[0].tensors):
        raise ValueError("the SHA-256 of its mean are not those of the sources' tensors")


def trace(out: str | Path, tensor: str, slot: int | None = None) -> list[list[TracedOrigin]]:
    """Follow a tensor back through every recombination in a row whose lineage is still there.

    Returns one chain for every output slot (or for `slot` alone): first where the output's tensor came from, then
    where that came from … The last link of a chain says why it ends at an earlier recombination, e.g. at its mean.
    Raises VerificationError when there is no such tensor.
    """
    lineage = read_lineage(out)
    where = lineage.folder / LINEAGE_FILE
    starts = [o for o in lineage.tensors if o.tensor == tensor]
    if not starts:
        near = difflib.get_close_matches(tensor, {o.tensor for o in lineage.tensors}, n=1)
        raise VerificationError(
            f"{where}: no tensor {tensor!r}" + (f", did you mean {near[0]!r}?" if near else ""),
            hint="`fedmr-merge rules explain CKPT` lists the tensors of a model",
        )
    if slot is not None and slot not in lineage.outputs:
        raise VerificationError(
            f"{where}: no slot {slot}", hint=f"its slots are {', '.join(map(str, lineage.outputs))}"
        )
    starts = [o for o in starts if slot in (None, o.slot)]
    return [_follow(lineage, start) for start in starts]


def _follow(lineage: Lineage, origin: TensorOrigin) -> list[TracedOrigin]:
    chain = [_placed(lineage, origin)]
    seen = {lineage.folder.resolve()}
    while True:
        model = lineage.sources[chain[-1].origin.source_slot]
        if model.hub is not None:
            return chain
        source = model.place(lineage.folder).resolve()
        # A model that is a folder may have been named by the weight file in it.
        folder = next((p for p in source.parents[:2] if p not in seen and os.access(p / LINEAGE_FILE, os.F_OK)), None)
        if folder is None:
            return chain
        seen.add(folder)
        try:
            lineage = read_lineage(folder)
        except VerificationError as error:
            return [*chain[:-1], chain[-1]._replace(ends=str(error))]
        name = source.relative_to(folder).parts[0]
        if lineage.mean and PurePosixPath(str(lineage.mean["path"])).parts[0] == name:
            why = f"it is the mean of the {len(lineage.sources)} models that {folder / LINEAGE_FILE} names"
            return [*chain[:-1], chain[-1]._replace(ends=why)]
        slot = next((slot for slot, path in lineage.outputs.items() if path == name), None)
        before = next((o for o in lineage.tensors if o.slot == slot and o.tensor == origin.tensor), None)
        if before is None:
            return chain
        chain.append(_placed(lineage, before))


def _placed(lineage: Lineage, origin: TensorOrigin) -> TracedOrigin:
    source = lineage.sources[origin.source_slot]
    place = source.path if source.hub is not None else str(source.place(lineage.folder))
    folder = place[: -len(PurePosixPath(place).name) - 1] if place.endswith(INDEX) else place
    return TracedOrigin(origin, f"{folder}/{origin.source_file}" if source.is_folder else place)
