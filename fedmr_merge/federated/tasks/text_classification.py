"""Texts, each of one class."""

from __future__ import annotations

from dataclasses import dataclass

from fedmr_merge.federated.tasks._classification import Classification


@dataclass(frozen=True)
class TextClassification(Classification):
    """Find the class of a text. The loss is the cross-entropy, the metrics are accuracy and mean cross-entropy."""

    pipeline_tag = "text-classification"
    widget = ({"text": "What a text is about can often be seen from a few words."},)
    kinds = ("tokens",)
