"""Clustered sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedmr_merge.federated.algorithms._averaging import Averaging
from fedmr_merge.federated.algorithms._urns import fill_urns
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State, Trained

#: [1 + M, 1 + M]: between an update of zero and the M updates that are known, ascending by client.
_DISTANCES = "distances between updates"
_ALL_DISTANCES = "distances"  #: [N, N], between all clients: version 0.1.0 kept those


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

    @property
    def why_single_models(self) -> str:
        """Why the server must see the model of each client."""
        return "compares the updates of single clients"

    def start(self, federation: Federation, previous: State) -> State:
        """Start from the global model; no update is known yet."""
        federation.architecture.require_mean_of_weights(self.name)
        return State.from_global(previous.global_weights, tensors={_DISTANCES: torch.zeros(1, 1)})

    def select(self, federation: Federation, state: State, round: int) -> tuple[int, ...]:
        """Draw one client from each urn."""
        distances = self._known_distances(state.tensors).cpu().numpy()
        urns = fill_urns(federation.partition.sizes, federation.slots, _known(state.tensors), distances)
        rng = federation.generator("client selection", round)
        return tuple(int(rng.choice(len(urn), p=urn / urn.sum())) for urn in urns)

    def aggregate(self, federation: Federation, state: State, trained: Trained, round: int) -> State:
        """Average the drawn models, and measure the distances of the new updates to all that are known."""
        model, moments = self.server_step(federation, state, trained.cohort.mean())
        tensors = {**state.tensors, **moments}
        moved = sorted({(client, slot) for slot, client in enumerate(trained.clients) if trained.steps[slot]})
        for client, slot in moved:
            update = [trained.cohort.tensors[name][slot] - state.global_weights[name] for name in federation.trainable]
            tensors[_key(client)] = torch.cat([part.flatten() for part in update])
        tensors[_DISTANCES] = self._known_distances(state.tensors)
        tensors.pop(_ALL_DISTANCES, None)
        if moved:
            changed = sorted({client for client, _ in moved})
            tensors[_DISTANCES] = self._updated(tensors, _known(state.tensors), changed)
        return State.from_global(model, tensors=tensors)

    def _updated(self, tensors: Mapping[str, Tensor], before: Sequence[int], changed: Sequence[int]) -> Tensor:
        """Return the distances after the updates of the clients `changed` have changed or become known."""
        known = _known(tensors)
        place = {client: row for row, client in enumerate(known, start=1)}
        distances = tensors[_DISTANCES].new_zeros(1 + len(known), 1 + len(known))
        kept = torch.tensor([0, *(place[client] for client in before)], device=distances.device)
        distances[kept[:, None], kept] = tensors[_DISTANCES]
        new = torch.stack([tensors[_key(client)] for client in changed])
        rows = [place[client] for client in changed]
        for column, update in enumerate([torch.zeros_like(new[0]), *(tensors[_key(client)] for client in known)]):
            distances[rows, column] = distances[column, rows] = self._distance(new, update).to(distances)
        return distances.fill_diagonal_(0)

    def _distance(self, new: Tensor, update: Tensor) -> Tensor:
        """Return the distances [n] of n updates [n, numbers] to another."""
        if self.distance == "angle":
            return torch.cosine_similarity(new, update[None], dim=1).clamp(-1, 1).arccos()
        found: Tensor = torch.linalg.vector_norm(new - update, ord=1 if self.distance == "l1" else 2, dim=1)
        return found

    def _known_distances(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the distances between zero and the known updates; those of version 0.1.0 are between all clients."""
        if _DISTANCES in tensors:
            return tensors[_DISTANCES]
        known, between_all = _known(tensors), tensors[_ALL_DISTANCES]
        found = between_all.new_zeros(1 + len(known), 1 + len(known))
        found[1:, 1:] = between_all[known][:, known]
        for row, client in enumerate(known, start=1):
            update = tensors[_key(client)]
            found[0, row] = found[row, 0] = self._distance(update[None], torch.zeros_like(update))[0]
        return found


def _key(client: int) -> str:
    return f"client/{client:05d}"


def _known(tensors: Mapping[str, Tensor]) -> list[int]:
    """Return the clients whose update is known, ascending."""
    return sorted(int(name.removeprefix("client/")) for name in tensors if name.startswith("client/"))
