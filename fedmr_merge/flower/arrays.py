"""A tensor ↔ an `Array` of Flower, byte for byte, and the checks of what an `Array` claims to be.

Flower carries any bytes under a name of their own, its `stype`. Here they are the numbers of the tensor, little-endian
and in C order, without a header: what an array claims is its dtype, its shape and the number of its bytes, and each is
compared with the tensor that was sent out. That also carries bfloat16, which numpy does not know.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedmr_merge.errors import listed, shown

if TYPE_CHECKING:
    from flwr.app import Array, ArrayRecord

STYPE = "fedmr-merge.raw"


class RefusedError(Exception):
    """Something that another machine sent and that is refused; the message says why."""


@dataclass(frozen=True)
class Form:
    """The dtype and the shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        """Return the form of a tensor."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def dtype_name(self) -> str:
        """The name of the dtype, e.g. `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        """The bytes of such a tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype_name} {list(self.shape)}"


def to_array(tensor: Tensor) -> Array:
    """Return an `Array` of a tensor's bytes; on the CPU it has the tensor's memory, which must not be written to."""
    from flwr.app import Array

    form = Form.of(tensor)
    array = Array(form.dtype_name, form.shape, STYPE, b"")
    # Its constructor takes nothing but bytes, and so a copy; what it does with them later it does with any buffer.
    array.data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return array


def to_tensor(array: Array, form: Form) -> Tensor:
    """Return the tensor of an `Array` that was checked; it has the array's memory and must not be written to."""
    if not array.data:
        return torch.empty(form.shape, dtype=form.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(array.data, dtype=form.dtype).view(form.shape)


def to_record(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Return a record that holds these arrays themselves; one made by its constructor would hash them anew."""
    from flwr.app import ArrayRecord

    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


def check_arrays(found: Mapping[str, Any], expected: Mapping[str, Form]) -> None:
    """Check that a record holds the tensors that are expected, and that all their numbers are finite.

    Raises RefusedError that says what is wrong.
    """
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    for names, what in ((missing, "it lacks"), (unknown, "it holds, although the model does not,")):
        if names:
            quoted = listed((repr(shown(name)) for name in names), between=", ", most=3)
            raise RefusedError(f"{what} the tensor{'s' if len(names) > 1 else ''} {quoted}")
    for name, form in expected.items():
        _check_array(name, found[name], form)


def _check_array(name: str, array: Any, form: Form) -> None:
    if array.stype != STYPE:
        raise RefusedError(f"tensor {name!r} is serialised as {shown(array.stype, 40)!r}, not as {STYPE!r}")
    if array.dtype != form.dtype_name or tuple(array.shape) != form.shape:
        claimed = shown(f"{array.dtype} {list(array.shape)}", 80)
        raise RefusedError(f"tensor {name!r} is {claimed}, and {form} is expected")
    if len(array.data) != form.nbytes:
        raise RefusedError(f"tensor {name!r} has {len(array.data):,} bytes, and {form} has {form.nbytes:,}")
    if form.dtype == torch.bool and bytes(array.data).translate(None, b"\x00\x01"):
        raise RefusedError(f"tensor {name!r} holds bytes that are not bool")
    if form.dtype.is_floating_point:
        tensor = to_tensor(array, form)
        # A finite sum has no other terms; looking at each value takes many times as long.
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise RefusedError(f"tensor {name!r} holds numbers that are not finite")
