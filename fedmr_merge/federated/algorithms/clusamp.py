"""Clustered sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from fedmr_merge.federated.algorithms._averaging import Averaging
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State, Trained


@dataclass(frozen=True)
class CluSamp(Averaging):
    """FedAvg with clients that are drawn from clusters of similar updates.

    Fraboni et al., "Clustered Sampling: Low-Variance and Improved Representativity for Clients Selection in Federated
    Learning", 2021 (ICML), algorithm 2. K urns hold the clients, similar ones in the same urn, and every round draws
    one client from each urn; a client with more than 1/K of all examples can be drawn more than once. In expectation, a
    client counts by its share of all examples, which is why the mean of the drawn models is unweighted. The update of
    a client is kept from its first round on, and is zero before.
    """

    distance: Literal["l1", "l2", "angle"] = "l1"  #: the distance between the last updates of two clients
    selection: Literal["clusters"] = field(default="clusters", kw_only=True)  # type: ignore[assignment]
    """The clusters select the clients."""

    def start(self, federation: Federation, previous: State) -> State:
        """Start from the global model, with updates of zero."""
        clients = len(federation.partition)
        distances = {"distances": torch.zeros(clients, clients)}
        return State.from_global(previous.global_weights, tensors=distances)

    def select(self, federation: Federation, state: State, round: int) -> tuple[int, ...]:
        """Draw one client from each urn."""
        urns = fill_urns(federation.partition.sizes, federation.slots, state.tensors["distances"].cpu().numpy())
        rng = federation.generator("client selection", round)
        return tuple(int(rng.choice(len(urn), p=urn / urn.sum())) for urn in urns)

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Average the drawn models, and measure the distances of the new updates to all others."""
        model, moments = self.server_step(federation, state, trained.cohort.mean())
        tensors = {**state.tensors, **moments}
        moved = sorted({(client, slot) for slot, client in enumerate(trained.clients) if trained.steps[slot]})
        for client, slot in moved:
            update = [trained.cohort.tensors[name][slot] - state.global_weights[name] for name in federation.trainable]
            tensors[f"client/{client:05d}"] = torch.cat([part.flatten() for part in update])
        if moved:
            tensors["distances"] = self._distances(tensors, sorted({client for client, _ in moved}))
        return State.from_global(model, tensors=tensors)

    def _distances(self, tensors: dict[str, Tensor], changed: Sequence[int]) -> Tensor:
        distances = tensors["distances"].clone()
        new = torch.stack([tensors[f"client/{client:05d}"] for client in changed])
        for other in range(len(distances)):
            update = tensors.get(f"client/{other:05d}", torch.zeros_like(new[0]))
            if self.distance == "angle":
                found = torch.cosine_similarity(new, update[None], dim=1).clamp(-1, 1).arccos()
            else:
                found = torch.linalg.vector_norm(new - update, ord=1 if self.distance == "l1" else 2, dim=1)
            distances[changed, other] = distances[other, changed] = found.to(distances)
        return distances.fill_diagonal_(0)


def fill_urns(sizes: Sequence[int], slots: int, distances: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return how much of each client is in each of K urns, as exact integers [slots, clients].

    A client weighs K times its number of examples, and an urn holds as much as all clients have examples: so all urns
    are full.
    """
    capacity = sum(sizes)
    weights = np.array(sizes, dtype=np.int64) * slots
    urns = np.zeros((slots, len(sizes)), dtype=np.int64)
    # A client that is heavy enough fills whole urns alone.
    first = 0
    for large in np.flatnonzero(weights >= capacity):
        whole = int(weights[large] // capacity)
        urns[first : first + whole, large] = capacity
        weights[large] -= whole * capacity
        first += whole
    clusters = sorted(_clusters(weights, capacity, distances), key=lambda cluster: (-weights[cluster].sum(), cluster))
    # The heaviest clusters each have an urn to themselves; what is left of the urns is filled with the other clients.
    open_urns = range(first, slots)
    for urn, cluster in zip(open_urns, clusters, strict=False):
        urns[urn, cluster] = weights[cluster]
    urn = first
    for client in (client for cluster in clusters[len(open_urns) :] for client in cluster):
        rest = int(weights[client])
        while rest:
            poured = min(rest, capacity - int(urns[urn].sum()))
            urns[urn, client] += poured
            rest -= poured
            urn += int(urns[urn].sum() == capacity)
    return urns


def _clusters(weights: NDArray[np.int64], capacity: int, distances: NDArray[np.floating]) -> list[list[int]]:
    """Return the largest branches of Ward's tree that fit into an urn; a cluster's clients ascend."""
    branches: list[list[int] | None] = [[client] for client in range(len(weights))]
    for left, right in (
        linkage(squareform(distances, checks=False), "ward")[:, :2].astype(int) if len(weights) > 1 else ()
    ):
        merged = (branches[left] or []) + (branches[right] or [])
        fits = branches[left] is not None and branches[right] is not None and weights[merged].sum() <= capacity
        branches.append(sorted(merged) if fits else None)
        if fits:
            branches[left] = branches[right] = []
    return [branch for branch in branches if branch]
