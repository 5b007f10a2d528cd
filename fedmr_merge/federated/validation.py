"""Measure a model on the examples that clients hold out of training: on all together, and client by client."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmr_merge.federated.cohort import Weights
from fedmr_merge.federated.evaluation import evaluate, predictions
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.metrics import Metric
from fedmr_merge.federated.training.precision import float32_products

_DECILE = 0.1


@dataclass(frozen=True)
class OverClients:
    """How a metric is spread over the clients."""

    mean: float
    deviation: float  #: the standard deviation over these clients, which are all that there are
    worst_decile: float  #: the mean of the tenth of the clients for which it is worst, one at least

    @classmethod
    def of(cls, values: Sequence[float], metric: Metric) -> OverClients:
        """Return that of a value for each client."""
        worst = sorted(values, reverse=not metric.higher_is_better)[: math.ceil(_DECILE * len(values))]
        return cls(statistics.fmean(values), statistics.pstdev(values), statistics.fmean(worst))


def measure(federation: Federation, weights: Weights) -> dict[str, float]:
    """Return what a round records of its global model: `test_…`, and `validation_…` and `client_…` where asked for.

    `client_…` are mean, deviation and worst decile of the metric that decides over the clients' own held-out parts.
    """
    task = federation.task
    test = evaluate(federation, weights).metrics
    found = {metric.key: test[metric.name] for metric in task.metrics}
    if federation.held_out is None:
        return found
    by_client = _totals_by_client(federation, weights, federation.held_out)
    sizes = [len(indices) for indices in federation.held_out if len(indices)]
    pooled = task.summary([sum(column) for column in zip(*by_client, strict=True)], sum(sizes), federation.data)
    found |= {f"validation_{metric.name}": pooled[metric.name] for metric in task.metrics}
    if federation.training.validation_at == "clients":
        name = task.decisive.name
        own = [task.summary(totals, size, federation.data)[name] for totals, size in zip(by_client, sizes, strict=True)]
        spread = OverClients.of(own, task.decisive)
        found |= {f"client_{name}_{key}": value for key, value in vars(spread).items()}
    return found


def _totals_by_client(federation: Federation, weights: Weights, held_out: Sequence[np.ndarray]) -> list[list[float]]:
    """Return the sums that the metrics are made from, for each client that holds examples out.

    Examples of several clients go through the model together; only their sums are taken apart.
    """
    parts = [indices for indices in held_out if len(indices)]
    ends = np.cumsum([len(indices) for indices in parts]).tolist()
    indices = torch.from_numpy(np.concatenate(parts)).to(federation.device)
    totals: list[Tensor | None] = [None] * len(parts)
    client, begun = 0, 0
    with float32_products():
        for outputs, targets in predictions(federation, weights, "train", indices):
            start, stop = begun, begun + len(targets)
            while start < stop:
                end = min(stop, ends[client])
                here = slice(start - begun, end - begun)
                added, before = federation.task.totals(outputs[here], targets[here], federation.data), totals[client]
                totals[client] = added if before is None else before + added
                client += end == ends[client]
                start = end
            begun = stop
    # One copy from a GPU, which is waited for.
    found: list[list[float]] = torch.stack([total for total in totals if total is not None]).tolist()
    return found
