"""CIFAR-100."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedmr_merge.federated.data.datasets._cifar import BinaryFiles, Cifar
from fedmr_merge.federated.data.datasets._cifar_python import PythonFiles


@dataclass(frozen=True, kw_only=True)
class Cifar100(Cifar):
    """60,000 small photographs of 100 classes (Krizhevsky 2009), the last 10,000 for testing."""

    repo: ClassVar[str] = "uoft-cs/cifar100"

    labels: Literal["fine", "coarse"] = "fine"  #: the 100 classes, or the 20 groups of five that FedMR's authors use

    def label_column(self) -> str:
        """Return the column of the labels in the Hub's data set."""
        return f"{self.labels}_label"

    def binary_files(self) -> BinaryFiles:
        """Return what the binary version consists of."""
        return BinaryFiles(
            folder="cifar-100-binary",
            train=("train.bin",),
            test="test.bin",
            names=f"{self.labels}_label_names.txt",
            label_bytes=2,
            label_byte=0 if self.labels == "coarse" else 1,
            archive="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        )

    def python_files(self) -> PythonFiles:
        """Return what the Python version consists of."""
        return PythonFiles(
            folder="cifar-100-python",
            train=("train",),
            test="test",
            meta="meta",
            labels=f"{self.labels}_labels",
            names=f"{self.labels}_label_names",
        )
