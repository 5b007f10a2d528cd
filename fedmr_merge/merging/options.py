"""How a mean of models is taken, and which dtypes have one. Imports no numpy, since planning needs no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.cores import usable_cores
from fedmr_merge.errors import PlanError
from fedmr_merge.plain_values import number

#: The dtypes that a mean can be taken of, and their names in torch and in a config.json.
TORCH_NAMES = {
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
FLOATS = tuple(TORCH_NAMES)
#: dtypes of which slot 0's copy is kept: a mean of counters or masks has no meaning.
KEPT = frozenset({"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"})

#: The buffers of a piece still fit the processor's caches; with smaller pieces the calls around them cost more.
_PIECE_ELEMENTS = 1 << 18
_MIN_PIECE_ELEMENTS = 1 << 12
#: By default: with more, disks and memory are what a mean waits for, and each holds buffers of its own.
_MOST_THREADS = 16
#: The most that one thread holds per element: the bytes of one source, two accumulators, and the steps of encoding, or
#: those of a sum that overflows.
_BYTES_PER_ELEMENT = 80
#: Python, numpy and the headers, beside the pieces that are worked on.
_BASE_BYTES = 120 << 20


@dataclass(frozen=True)
class MeanOptions:
    """How a mean is taken.

    Args:
        weights: one for each slot, divided by their sum; equal if None.
        double: whether the numbers are added up in float64; in float32 otherwise, but float64 tensors in float64.
        out_dtype: the dtype that the mean's floats are written in, as safetensors calls it; that of slot 0 if None.
        threads: the number of threads; one for each core that the process may use, at most 16, if None. The bytes are
            the same for any number.
        max_memory_bytes: a bound on the memory that the process takes; none if None.

    Raises:
        PlanError: a weight is not a number.

    Example:
        >>> from fedmr_merge import MeanOptions
        >>> MeanOptions(weights=(3, 1)).weights
        (3, 1)
    """

    weights: tuple[float, ...] | None = None
    double: bool = False
    out_dtype: str | None = None
    threads: int | None = None
    max_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(number(weight, "weights: a weight") for weight in self.weights))

    def check(self, slots: int) -> None:
        """Raise PlanError when the options do not fit `slots` models."""
        if self.weights is not None:
            if len(self.weights) != slots:
                raise PlanError(
                    f"{len(self.weights)} weights for {slots} models", hint="give one weight for each model"
                )
            if not all(isfinite(w) and w >= 0 for w in self.weights) or sum(self.weights) <= 0:
                raise PlanError(
                    f"weights must be 0 or more and not all 0, found {list(self.weights)}",
                    hint="for example 0.5,0.25,0.25",
                )
        if self.out_dtype is not None and self.out_dtype not in FLOATS:
            raise PlanError(
                f"a mean cannot be written as {self.out_dtype!r}", hint=f"choose one of {', '.join(FLOATS)}"
            )

    @property
    def buffer_bytes(self) -> int:
        """The most that all threads hold together."""
        threads, elements = self.plan_work()
        return threads * elements * _BYTES_PER_ELEMENT

    def plan_work(self) -> tuple[int, int]:
        """Return the numbers of threads and of elements per piece that keep to the memory bound.

        Raises PlanError when no numbers do.
        """
        threads = self.threads or min(usable_cores(), _MOST_THREADS)
        if self.max_memory_bytes is None:
            return threads, _PIECE_ELEMENTS
        room = self.max_memory_bytes - _BASE_BYTES
        threads = max(1, min(threads, room // (_MIN_PIECE_ELEMENTS * _BYTES_PER_ELEMENT)))
        elements = min(_PIECE_ELEMENTS, room // (threads * _BYTES_PER_ELEMENT))
        if elements < _MIN_PIECE_ELEMENTS:
            least = (_BASE_BYTES + _MIN_PIECE_ELEMENTS * _BYTES_PER_ELEMENT) >> 20
            raise PlanError(
                f"a mean cannot be taken within {self.max_memory_bytes / (1 << 20):.3g} MiB",
                hint=f"allow at least {least + 1} MiB",
            )
        return threads, elements


@dataclass(frozen=True)
class NotFinite:
    """NaN or infinite numbers of an input, or of the mean though those of the inputs are finite."""

    tensor: str
    slot: int | None  #: None for numbers of the mean that are too large for their dtype
    count: int

    def describe(self, sources: Sequence[str]) -> tuple[str, str]:
        """Return what holds the numbers, one of the models or the mean, and a sentence on what it holds."""
        if self.slot is None:
            return (
                "the mean",
                f"tensor {self.tensor!r} has {self.count} numbers too large for the dtype it is written in",
            )
        return sources[self.slot], f"tensor {self.tensor!r} holds {self.count} NaN or infinite numbers"


@dataclass(frozen=True)
class MeanOutcome:
    """What was met while a mean was taken."""

    not_finite: tuple[NotFinite, ...] = ()  #: NaN and infinite numbers
    #: Tensors of integers that differ between the models, by name: they have no mean, and slot 0's are in it.
    differing_integers: tuple[str, ...] = ()
    rank: int | None = None  #: of an exact mean of adapters, the largest of its modules' ranks
    lost: float = 0.0  #: of such a mean, the share of its norm that a smaller rank has lost


def out_dtype(entry: TensorEntry, options: MeanOptions) -> str:
    """Return the dtype that the mean of a tensor is written in."""
    return entry.dtype if entry.dtype in KEPT or options.out_dtype is None else options.out_dtype
