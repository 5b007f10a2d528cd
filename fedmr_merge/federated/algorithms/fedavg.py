"""Federated averaging."""

from __future__ import annotations

from dataclasses import dataclass

from fedmr_merge.federated.algorithms._averaging import Averaging


@dataclass(frozen=True)
class FedAvg(Averaging):
    """Clients train the global model; their mean, weighted by examples, is the next one.

    McMahan et al. 2017 (AISTATS), algorithm 1.
    """
