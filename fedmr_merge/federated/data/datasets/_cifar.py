"""CIFAR-10 and CIFAR-100: where they may lie, and their binary version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets._cifar_python import PythonFiles, read_python
from fedmr_merge.federated.data.datasets._images import ImageDataSet, Part
from fedmr_merge.federated.data.datasets._table import class_names, decode, has_parquet, read_hub, read_local, values
from fedmr_merge.federated.data.images import ImageData
from fedmr_merge.paths import local_path

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class BinaryFiles:
    """The binary version of a CIFAR data set, as its authors give it out."""

    folder: str  #: what its archive unpacks to
    train: tuple[str, ...]
    test: str
    names: str  #: the file with the classes' names, one a line
    label_bytes: int  #: in front of every image
    label_byte: int  #: which of them is the label
    archive: str  #: what to download


@dataclass(frozen=True, kw_only=True)
class Cifar(ImageDataSet):
    """Base of the CIFAR data sets (Krizhevsky 2009): 50,000 training and 10,000 test images, 32x32, in colour."""

    repo: ClassVar[str]

    path: str | None = None
    """A folder with the parquet files of the Hub's data set, or with the authors' binary or Python version, the latter
    being what torchvision downloads; `null` loads it from the Hub or its cache."""

    @property
    def packages(self) -> tuple[str, ...]:
        """What decodes the images."""
        return ("pillow",)

    @property
    def hub_id(self) -> str | None:
        """Return the name that it has on the Hub, wherever it was read from."""
        return self.repo

    def label_column(self) -> str:
        """Return the column of the labels in the Hub's data set."""
        raise NotImplementedError

    def binary_files(self) -> BinaryFiles:
        """Return what the binary version consists of."""
        raise NotImplementedError

    def python_files(self) -> PythonFiles:
        """Return what the Python version consists of."""
        raise NotImplementedError

    def load(self) -> ImageData:
        """Return the data."""
        if self.path is None:
            return self._from_tables(None)
        path, binary, python = local_path(self.path), self.binary_files(), self.python_files()
        try:
            for folder in (path, path / binary.folder):
                if (folder / binary.test).is_file():
                    return self.assemble(*_read_binary(folder, binary))
            for folder in (path, path / python.folder):
                if (folder / python.meta).is_file():
                    return self.assemble(*read_python(folder, python))
        except OSError as error:
            raise DataError(
                f"{error.filename}: {error.strerror}",
                hint=f"download {binary.archive} and unpack it again",
                path=error.filename,
            ) from error
        if path.is_dir() and has_parquet(path):
            return self._from_tables(path)
        raise DataError(
            f"{path}: there is no {self.name}, neither as parquet nor as {binary.folder} or {python.folder}",
            hint=f"download {binary.archive} and unpack it there",
            path=path,
        )

    def _from_tables(self, path: Path | None) -> ImageData:
        columns = ("img", self.label_column())
        parts = []
        for split in ("train", "test"):
            table = read_hub(self.repo, None, split, columns) if path is None else read_local(path, split, columns)
            parts.append(Part(decode(table, "img", colour=True), values(table, columns[1]).astype(np.int64)))
        names = class_names(table, columns[1])
        if names is None:
            names = tuple(str(label) for label in range(int(parts[0].labels.max()) + 1))
        return self.assemble(parts[0], parts[1], names)


def _read_binary(folder: Path, files: BinaryFiles) -> tuple[Part, Part, Sequence[str]]:
    names = (folder / files.names).read_text(encoding="utf-8").split()
    return _read_records(folder, files.train, files), _read_records(folder, (files.test,), files), names


def _read_records(folder: Path, names: Sequence[str], files: BinaryFiles) -> Part:
    """Read records of label bytes, then 1024 values each of red, green and blue, row by row."""
    length = files.label_bytes + _PIXELS
    parts = []
    for name in names:
        content = np.fromfile(folder / name, dtype=np.uint8)
        if len(content) % length or not len(content):
            raise DataError(
                f"{folder / name}: {len(content)} bytes are not a whole number of records of {length} bytes",
                path=folder / name,
            )
        parts.append(content.reshape(-1, length))
    records = np.concatenate(parts)
    images = np.ascontiguousarray(records[:, files.label_bytes :]).reshape(-1, 3, 32, 32)
    return Part(images, records[:, files.label_byte].astype(np.int64))
