"""Rows of numbers, each with a class or a number to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedmr_merge.federated.data.tensors import TensorData


@dataclass(frozen=True)
class Scale:
    """What is subtracted from a number, and then divided by."""

    mean: float
    std: float


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureData(TensorData):
    """A table: inputs are float32 [examples, features], standardised by their scales.

    Targets are int64 classes, or float32 numbers that are standardised, too.
    """

    kind: ClassVar[str] = "features"

    feature_names: tuple[str, ...]
    scales: tuple[Scale, ...]  #: of the features
    target_name: str = "target"
    target_scale: Scale | None = None  #: where targets are numbers
    measured: bool = False  #: whether the scales were measured on the training rows

    @property
    def example_shape(self) -> tuple[int]:
        """The number of features."""
        return (len(self.feature_names),)

    @property
    def target_unit(self) -> float:
        """What a difference of targets is multiplied with to be one in the units of the table."""
        return 1.0 if self.target_scale is None else self.target_scale.std

    def preprocess(self) -> dict[str, Any]:
        """Return the features' names and scales and, of a number to predict, its name and scale."""
        found: dict[str, Any] = {
            "features": list(self.feature_names),
            "mean": [scale.mean for scale in self.scales],
            "std": [scale.std for scale in self.scales],
        }
        if self.target_scale is not None:
            scale = self.target_scale
            found["target"] = {"name": self.target_name, "mean": scale.mean, "std": scale.std}
        return found
