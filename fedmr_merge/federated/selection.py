"""The ways to select the clients of a round, as the option `selection` of a method names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fedmr_merge.federated.cohort import Weights
from fedmr_merge.federated.evaluation import evaluate
from fedmr_merge.federated.federation import Federation

Selection = Callable[[Federation, Weights, int], tuple[int, ...]]
"""(federation, global model, round) → K different clients in random order."""

_CANDIDATES = 2  # of `by_loss`, per client that is selected: d = 2K


def uniform(federation: Federation, weights: Weights, round: int) -> tuple[int, ...]:
    """Select K of the clients, uniformly at random."""
    rng = federation.sampling_generator(weights, round)
    return tuple(rng.choice(len(federation.partition), size=federation.slots, replace=False).tolist())


def by_size(federation: Federation, _: Weights, round: int) -> tuple[int, ...]:
    """Select K of the clients one after the other, each with a probability in proportion to its number of examples."""
    rng = federation.generator("client selection", round)
    # In random order: those with many examples are likely to be drawn first.
    return tuple(rng.permutation(_by_size(federation, federation.slots, rng)).tolist())


def round_robin(federation: Federation, _: Weights, round: int) -> tuple[int, ...]:
    """Select the next K of a circle of all clients, whose order stays the same in a run."""
    clients, slots = len(federation.partition), federation.slots
    circle = federation.generator("client selection: circle").permutation(clients)
    chosen = circle[(np.arange(slots) + (round - 1) * slots) % clients]
    # In random order: otherwise each of FedMR's models would always be sent to the same few clients.
    return tuple(federation.generator("client selection", round).permutation(chosen).tolist())


def by_loss(federation: Federation, weights: Weights, round: int) -> tuple[int, ...]:
    """Select the K clients with the largest loss of the global model, out of 2K candidates that are drawn by size.

    This is power-of-choice with d = 2K: Cho, Wang and Joshi, "Towards Understanding Biased Client Selection in
    Federated Learning", 2022 (AISTATS).
    """
    rng = federation.generator("client selection", round)
    candidates = _by_size(federation, min(_CANDIDATES * federation.slots, len(federation.partition)), rng)
    losses = {client: _loss(federation, weights, client) for client in candidates}
    chosen = sorted(candidates, key=lambda client: (-losses[client], client))[: federation.slots]
    return tuple(rng.permutation(chosen).tolist())


SELECTIONS: Mapping[str, Selection] = {
    "uniform": uniform,
    "by_size": by_size,
    "round_robin": round_robin,
    "by_loss": by_loss,
}


def _by_size(federation: Federation, count: int, rng: np.random.Generator) -> tuple[int, ...]:
    sizes = np.array(federation.partition.sizes, dtype=np.float64)
    return tuple(rng.choice(len(sizes), size=count, replace=False, p=sizes / sizes.sum()).tolist())


def _loss(federation: Federation, weights: Weights, client: int) -> float:
    """Return a model's mean loss over a client's training examples."""
    return evaluate(federation, weights, "train", federation.client_indices[client]).metrics["loss"]
