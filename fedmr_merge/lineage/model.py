"""The lineage of a recombination or an average: which tensor came from where, byte for byte, as values.

`lineage.json` stands beside the models and is enough to verify them, to undo the recombination and to trace a tensor
back. It has one line for each output tensor, so that people can read it and grep it:

    {"slot":0,"tensor":"conv1.weight","group":"conv1","source_slot":2,"source_file":"c.safetensors","start":168,"end":2568,"sha256":"…"}
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedmr_merge.layers.plan import RecombinationPlan
from fedmr_merge.lineage.parents import Parent

LINEAGE_FILE = "lineage.json"
FORMAT_VERSION = 1
RECOMBINE, AVERAGE = "recombine", "average"  #: the operations that write a lineage
HERE = "."  #: the path of a mean that is the output folder itself
_DIGEST_BYTES = 32


class TensorOrigin(NamedTuple):
    """Where one tensor of one output model came from. The fields are the keys in the file."""

    slot: int
    tensor: str
    group: str
    source_slot: int
    source_file: str  #: name within the parent
    start: int  #: first byte in that file
    end: int  #: first byte after it
    sha256: str | None  #: None until `verify` has compared a recombination that was not hashed at once


class Origins(Sequence[TensorOrigin]):
    """Where the tensors of all output models came from, held in columns because there can be hundreds of thousands."""

    def __init__(self, origins: Iterable[TensorOrigin]) -> None:
        """Raises TypeError, ValueError or OverflowError where an entry is not an origin."""
        self._names: list[str] = []
        self._numbers = array("Q")
        self._digests = bytearray()
        for slot, tensor, group, source_slot, source_file, start, end, sha256 in origins:
            digest = bytes(_DIGEST_BYTES) if sha256 is None else bytes.fromhex(sha256)
            if len(digest) != _DIGEST_BYTES:
                raise ValueError(f"{sha256!r:.80} is not a SHA-256")
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
    """What a `lineage.json` says."""

    folder: Path
    operation: str  #: RECOMBINE or AVERAGE
    facts: Mapping[str, Any]  #: seed, rounds, rule …: how the plan was drawn
    plan: RecombinationPlan  #: without any layer group where the operation was an average
    parents: tuple[Parent, ...]  #: the inputs, slot by slot
    outputs: Mapping[int, str]  #: slot → path in the folder
    mean: Mapping[str, Any] | None  #: path, weights, accumulate, out_dtype, and sha256 of every tensor
    tensors: Sequence[TensorOrigin]

    def donor(self, slot: int) -> Parent:
        """Return the parent whose config and tokenizer the output of a slot got."""
        shared = self.facts.get("sidecars_from")
        return self.parents[slot if shared is None else shared]

    @property
    def exact_adapters(self) -> Mapping[str, Any] | None:
        """Of the exact mean of adapters: the smaller `rank`, if any, and the share of the norm that it has `lost`."""
        return (self.mean or {}).get("adapters")

    @property
    def hashed(self) -> bool:
        """Whether the SHA-256 of every output tensor is recorded; of an average, that of every tensor of the mean."""
        if self.operation == AVERAGE:
            return self.mean is not None and self.mean.get("sha256") is not None
        return all(origin.sha256 is not None for origin in self.tensors)
