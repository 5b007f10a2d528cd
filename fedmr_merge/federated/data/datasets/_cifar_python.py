"""The Python version of CIFAR, which torchvision downloads: pickles, read without running anything that is in them."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets._images import Part

_ARRAYS = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}


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
        raise DataError(f"{folder / files.meta}: has no list {files.names!r}")
    train, test = (
        _read_batches([folder / name for name in part], files.labels) for part in (files.train, [files.test])
    )
    return train, test, tuple(map(str, names[files.names]))


def _read_batches(paths: Sequence[Path], key: str) -> Part:
    images, labels = [], []
    for path in paths:
        batch = _load(path)
        batch = batch if isinstance(batch, dict) else {}
        pixels, found = np.array(batch.get("data")), np.array(batch.get(key))
        whole = pixels.dtype == np.uint8 and pixels.shape[1:] == (3072,)
        if not whole or found.dtype.kind != "i" or found.shape != pixels.shape[:1]:
            raise DataError(f"{path}: is no batch of images, with rows of 3072 bytes in 'data' and numbers in {key!r}")
        images.append(pixels.reshape(-1, 3, 32, 32))
        labels.append(found.astype(np.int64))
    return Part(np.concatenate(images), np.concatenate(labels))


def _load(path: Path) -> Any:
    with path.open("rb") as stream:
        try:
            # The files were written by Python 2, whose texts are bytes: latin1 keeps each as one character.
            return _Unpickler(stream, encoding="latin1").load()
        except OSError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:120]}") from error


class _Unpickler(pickle.Unpickler):
    """Makes numbers, texts, lists, mappings and numpy arrays, and nothing else that a pickle may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what makes an array; any other name is refused, before anything of it is imported."""
        if (module.replace("numpy._core", "numpy.core"), name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return super().find_class(module, name)
