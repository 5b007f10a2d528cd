"""The last steps from rows of numbers to FeatureData: standardise by the training part, or leave them as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedmr_merge.federated.data.features import FeatureData, Scale
from fedmr_merge.federated.data.tensors import Examples

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What the numbers of a table are, and what is done to them."""

    names: Sequence[str]  #: of the features
    class_names: Sequence[str] = ()  #: where the targets are numbers of classes; else they are numbers to predict
    target_name: str = "target"
    clients: NDArray[np.int64] | None = None  #: [training examples], whose example it is
    as_they_are: bool = False  #: whether the numbers are given to a model as they are
    is_public: bool = False  #: whether the table comes with a library, so that its scales are known to everybody


def table_data(train: tuple[Numbers, Numbers], test: tuple[Numbers, Numbers], table: Table) -> FeatureData:
    """Return the data of two parts, each of which is features [examples, features] and targets [examples]."""
    scale = _unit if table.as_they_are else _scale
    scales = tuple(scale(column) for column in train[0].T)
    target = None if table.class_names else scale(train[1])
    parts = []
    for features, targets in (train, test):
        columns = [(column - scale.mean) / scale.std for column, scale in zip(features.T, scales, strict=True)]
        inputs = torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
        found = (
            targets.astype(np.int64) if target is None else ((targets - target.mean) / target.std).astype(np.float32)
        )
        parts.append(Examples(inputs, torch.from_numpy(found)))
    return FeatureData(
        train=parts[0],
        test=parts[1],
        class_names=tuple(table.class_names),
        train_clients=None if table.clients is None else torch.from_numpy(table.clients),
        feature_names=tuple(table.names),
        scales=scales,
        target_name=table.target_name,
        target_scale=target,
        measured=not (table.as_they_are or table.is_public),
    )


def _unit(_: Numbers) -> Scale:
    return Scale(0.0, 1.0)


def _scale(numbers: Numbers) -> Scale:
    # A column that is the same everywhere is left as it is, but for its mean.
    return Scale(float(numbers.mean()), float(numbers.std()) or 1.0)
