"""A number to predict for every example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.metrics import Metric
from fedmr_merge.federated.tasks.base import Loss, Task
from fedmr_merge.federated.training.options import Training


@dataclass(frozen=True)
class Regression(Task):
    """Predict a number. The metrics are the root mean square error and the mean absolute error, both in the units of
    the data, the coefficient of determination R², and the mean loss, of numbers that are standardised.
    """

    objective: Literal["squared", "huber"] = "squared"
    """The loss of a difference e between standardised numbers: e², or Huber's, e²/2 up to delta and then linear."""
    delta: Annotated[float, Gt(0)] = 1.0  #: δ of huber, where it becomes linear

    pipeline_tag = "tabular-regression"
    metrics = (
        Metric("rmse", higher_is_better=False),
        Metric("mae", higher_is_better=False),
        Metric("r2", higher_is_better=True),
        Metric("loss", higher_is_better=False),
    )
    kinds = ("features",)

    def check(self, data: Data, training: Training) -> None:
        """Raise DataError for targets that are classes, TrainingError for options that are about classes."""
        super().check(data, training)
        self.refuse_options_of_classes(training, "class_weights", "label_smoothing")
        if data.num_classes or not data.targets("train").is_floating_point():
            raise DataError(
                "task regression needs a number for every example, and the targets of these data are classes",
                hint="choose another task, or a target of numbers",
            )

    def outputs(self, data: Data) -> int:
        """Return 1: one number for every example."""
        return 1

    def loss(self, data: Data, training: Training) -> Loss:
        """Return the mean loss of a batch."""

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return self._losses(outputs, targets).mean()

        return loss

    def totals(self, outputs: Tensor, targets: Tensor, data: Data) -> Tensor:
        """Return the sums of squared errors, of absolute errors, of targets, of their squares, and of losses."""
        errors, numbers = (outputs.squeeze(-1) - targets).double(), targets.double()
        losses = self._losses(outputs.double(), numbers)
        return torch.stack(
            [errors.square().sum(), errors.abs().sum(), numbers.sum(), numbers.square().sum(), losses.sum()]
        )

    def summary(self, totals: Sequence[float], examples: int, data: Data) -> dict[str, float]:
        """Return the metrics; R² is 0 where all targets are the same number."""
        squared, absolute, total, squares, losses = totals
        spread = squares - total * total / examples
        unit = data.target_unit
        return {
            "rmse": unit * math.sqrt(squared / examples),
            "mae": unit * absolute / examples,
            "r2": 1 - squared / spread if spread > 0 else 0.0,
            "loss": losses / examples,
        }

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        errors = outputs.squeeze(-1) - targets
        if self.objective == "squared":
            return errors.square()
        return F.huber_loss(errors, torch.zeros_like(errors), reduction="none", delta=self.delta)
