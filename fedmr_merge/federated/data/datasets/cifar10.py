"""CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedmr_merge.federated.data.datasets._cifar import BinaryFiles, Cifar
from fedmr_merge.federated.data.datasets._cifar_python import PythonFiles


@dataclass(frozen=True, kw_only=True)
class Cifar10(Cifar):
    """60,000 small photographs of 10 classes (Krizhevsky 2009), the last 10,000 for testing."""

    repo: ClassVar[str] = "uoft-cs/cifar10"

    def label_column(self) -> str:
        """Return the column of the labels in the Hub's data set."""
        return "label"

    def binary_files(self) -> BinaryFiles:
        """Return what the binary version consists of."""
        return BinaryFiles(
            folder="cifar-10-batches-bin",
            train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            test="test_batch.bin",
            names="batches.meta.txt",
            label_bytes=1,
            label_byte=0,
            archive="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        )

    def python_files(self) -> PythonFiles:
        """Return what the Python version consists of."""
        return PythonFiles(
            folder="cifar-10-batches-py",
            train=tuple(f"data_batch_{number}" for number in range(1, 6)),
            test="test_batch",
            meta="batches.meta",
            labels="labels",
            names="label_names",
        )
