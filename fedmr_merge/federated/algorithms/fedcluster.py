"""Federated averaging in cycles through clusters of clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms._averaging import Averaging
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State


@dataclass(frozen=True)
class FedCluster(Averaging):
    """The clients are dealt into M clusters, which train one after the other.

    Chen et al., "FedCluster: Boosting the Convergence of Federated Learning via Cluster-Cycling", 2020 (IEEE Big Data),
    algorithm 1. A round here is what the paper calls a cycle: clients of one cluster train the global model, and the
    mean of what they trained, weighted by examples, is the next one. In M rounds each cluster has its turn once, in an
    order that is drawn anew every M rounds. A cluster of fewer than K clients trains as a whole.
    """

    clusters: Annotated[int, Ge(1)] = 2  #: M, the number of clusters; 1 is FedAvg
    selection: Literal["clusters"] = field(default="clusters", kw_only=True)  # type: ignore[assignment]
    """The clusters select the clients."""

    def start(self, federation: Federation, previous: State) -> State:
        """Start from the global model. Raises TrainingError when there are more clusters than clients."""
        clients = len(federation.partition)
        if self.clusters > clients:
            raise TrainingError(
                f"{clients} clients cannot be dealt into {self.clusters} clusters", hint="lower fedcluster.clusters"
            )
        return super().start(federation, previous)

    def select(self, federation: Federation, state: State, round: int) -> tuple[int, ...]:
        """Return K clients of the cluster whose turn it is, uniformly at random."""
        turn, place = divmod(round - 1, self.clusters)
        dealt = federation.generator("clusters of clients").permutation(len(federation.partition))
        order = federation.generator("order of clusters", turn).permutation(self.clusters)
        cluster = np.array_split(dealt, self.clusters)[order[place]]
        rng = federation.generator("client selection", round)
        return tuple(rng.permutation(cluster)[: federation.slots].tolist())
