"""Images, each of one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.tasks._classification import Classification
from fedmr_merge.federated.training.options import Training


@dataclass(frozen=True)
class ImageClassification(Classification):
    """Find the class of an image. The loss is the cross-entropy, the metrics are accuracy and mean cross-entropy."""

    pipeline_tag = "image-classification"
    kinds = ("images",)

    def check(self, data: Data, training: Training) -> None:
        """Raise DataError for data that are not images of classes, TrainingError for weights that do not fit."""
        if data.kind != "images":
            raise DataError(
                f"task {self.name} needs images, and these data are {data.kind}",
                hint="name another task, e.g. `task: {name: tabular-classification}`",
            )
        super().check(data, training)

    def config(self, data: Data) -> dict[str, Any]:
        """Return the number of classes and their names, and what is done to an image."""
        return {
            "num_classes": data.num_classes,
            "preprocess": data.preprocess(),
            "label_names": list(data.class_names),
        }
