"""The Python version of CIFAR, which torchvision downloads: pickles, read without building anything that is in them.

A pickle is a program. Its instructions are looked at before any is followed: those of the authors' files are allowed,
which make numbers, strings, lists, mappings and arrays. Not even an array is built by the pickle: what it says of one
is noted, and the bytes are checked before numpy sees them.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets._images import Part, Pixels

_LARGEST_BYTES = 512 << 20  #: of a file; the largest of the authors' has 155 MB
#: The instructions of Python 2's pickles, without those that make objects of classes.
_ALLOWED = frozenset(
    {
        *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG1"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
        *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "BUILD"),
    }
)
_REMEMBERS = ("PUT", "BINPUT", "LONG_BINPUT")


@dataclass(frozen=True)
class PythonFiles:
    """The Python version of a CIFAR data set, as its authors give it out."""

    folder: str  #: what its archive unpacks to
    train: tuple[str, ...]
    test: str
    meta: str  #: the file with the classes' names
    labels: str  #: key of the labels
    names: str  #: key of the classes' names


def read_python(folder: Path, files: PythonFiles) -> tuple[Part, Part, tuple[str, ...]]:
    """Return the training part, the test part and the classes' names. Raises DataError, and OSError as it comes."""
    names = _load(folder / files.meta)
    if not (isinstance(names, dict) and isinstance(names.get(files.names), list)):
        raise DataError(f"{folder / files.meta}: has no list {files.names!r}", path=folder / files.meta)
    train, test = (
        _read_batches([folder / name for name in part], files.labels) for part in (files.train, [files.test])
    )
    return train, test, tuple(str(name)[:200] for name in names[files.names])


def _read_batches(paths: Sequence[Path], key: str) -> Part:
    images, labels = [], []
    for path in paths:
        batch = _load(path)
        batch = batch if isinstance(batch, dict) else {}
        pixels, found = _pixels(batch.get("data")), batch.get(key)
        if pixels is None or not _are_labels(found, len(pixels)):
            raise DataError(
                f"{path}: is not a batch of images, with rows of 3072 bytes in 'data' and numbers in {key!r}", path=path
            )
        images.append(pixels)
        labels.append(np.array(found, dtype=np.int64))
    return Part(np.concatenate(images), np.concatenate(labels))


def _are_labels(found: Any, count: int) -> bool:
    """Whether this is a list of so many numbers of classes."""
    if not isinstance(found, list) or len(found) != count:
        return False
    return all(type(label) is int and 0 <= label < 2**31 for label in found)


def _pixels(noted: Any) -> Pixels | None:
    """Return the images [examples, 3, 32, 32] of an array that a pickle describes; None where it is another array."""
    if not isinstance(noted, _Array) or not isinstance(noted.state, tuple) or len(noted.state) != 5:
        return None
    _, shape, dtype, is_fortran, content = noted.state
    if not isinstance(dtype, _Dtype) or dtype.arguments[:1] not in (("u1",), ("|u1",)) or is_fortran:
        return None
    if not (isinstance(shape, tuple) and len(shape) == 2 and all(type(side) is int for side in shape)):
        return None
    try:
        found = content.encode("latin1") if isinstance(content, str) else content
    except UnicodeEncodeError:
        return None
    if not isinstance(found, bytes) or shape[1] != 3072 or shape[0] < 0 or shape[0] * 3072 != len(found):
        return None
    return np.frombuffer(found, dtype=np.uint8).reshape(-1, 3, 32, 32)


def _load(path: Path) -> Any:
    """Return what a pickle holds; see the top of this module."""
    size = path.stat().st_size
    if size > _LARGEST_BYTES or not path.is_file():
        raise DataError(f"{path}: {size:,} bytes are more than a file of CIFAR has", path=path)
    content = path.read_bytes()
    try:
        _check_instructions(content)
        # The files were written by Python 2, whose strings are bytes: latin1 keeps each as one character.
        return _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:120]}", path=path) from error


def _check_instructions(content: bytes) -> None:
    """Raise UnpicklingError for an instruction that the authors' files do not have, or a place that is far away."""
    remembered = 0
    argument: Any
    for instruction, argument, _ in pickletools.genops(content):
        if instruction.name not in _ALLOWED:
            raise pickle.UnpicklingError(f"it has the instruction {instruction.name}, which these files do not")
        if instruction.name in _REMEMBERS:
            remembered += 1
            if int(argument) > 2 * remembered + 256:  # what is remembered there takes memory up to there
                raise pickle.UnpicklingError(f"it remembers something at place {argument}")


class _Dtype:
    """What a pickle says of an array's dtype."""

    __slots__ = ("arguments",)

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        """Take no note: byte order and alignment do not matter to bytes."""


class _Array:
    """What a pickle says of an array."""

    __slots__ = ("state",)

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Ndarray:
    """What stands for numpy's class of arrays."""

    __slots__ = ()

    def __init__(self, *_: Any) -> None:
        raise pickle.UnpicklingError("it makes an array in a way that these files do not")


_STAND_INS: dict[tuple[str, str], type[Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    """Makes numbers, strings, lists, mappings and notes of arrays, and nothing else that a pickle may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what notes an array; any other name is refused, and nothing is imported."""
        found = _STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module[:40]}.{name[:40]}, which no array needs")
        return found
