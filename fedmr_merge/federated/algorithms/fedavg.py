"""Federated averaging."""

from __future__ import annotations

from dataclasses import dataclass

from fedmr_merge.federated.algorithms._averaging import Averaging


@dataclass(frozen=True)
class FedAvg(Averaging):
    """Clients train the global model; the mean of what they trained, weighted by examples, is the next global model.

    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017 (AISTATS),
    algorithm 1.
    """
