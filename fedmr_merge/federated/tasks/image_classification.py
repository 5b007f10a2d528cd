"""Images, each of one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.tasks._classification import Classification


@dataclass(frozen=True)
class ImageClassification(Classification):
    """Find the class of an image. The loss is the cross-entropy, the metrics are accuracy and mean cross-entropy."""

    pipeline_tag = "image-classification"
    kinds = ("images",)

    def config(self, data: Data) -> dict[str, Any]:
        """Return the number of classes and their names, and what is done to an image."""
        return {
            "num_classes": data.num_classes,
            "preprocess": data.preprocess(),
            "label_names": list(data.class_names),
        }
