"""The last steps from rows of numbers to FeatureData: standardise by the training part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedmr_merge.federated.data.features import FeatureData, Scale
from fedmr_merge.federated.data.tensors import Examples

Numbers = NDArray[np.float64]


def standardised(
    train: tuple[Numbers, Numbers],
    test: tuple[Numbers, Numbers],
    names: Sequence[str],
    *,
    class_names: Sequence[str] = (),
    target_name: str = "target",
    clients: NDArray[np.int64] | None = None,
) -> FeatureData:
    """Return the data of two parts, each of which is features [examples, features] and targets [examples].

    Targets are numbers of classes where there are `class_names`, else numbers to predict.
    """
    scales = tuple(_scale(column) for column in train[0].T)
    target = None if class_names else _scale(train[1])
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
        class_names=tuple(class_names),
        train_clients=None if clients is None else torch.from_numpy(clients),
        feature_names=tuple(names),
        scales=scales,
        target_name=target_name,
        target_scale=target,
    )


def _scale(numbers: Numbers) -> Scale:
    # A column that is the same everywhere is left as it is, but for its mean.
    return Scale(float(numbers.mean()), float(numbers.std()) or 1.0)
