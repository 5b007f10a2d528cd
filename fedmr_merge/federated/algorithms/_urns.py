"""Urns of similar clients: clustered sampling's clusters, in memory and time that do not grow with idle clients.

Clients of which no update is known have one place in the space of updates, zero, and are one point with a size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


def fill_urns(sizes: Sequence[int], slots: int, known: Sequence[int], distances: Floats) -> Integers:
    """Return how much of each client is in each of K urns, as exact integers [slots, clients].

    A client weighs K times its number of examples, and an urn holds as much as all clients have examples: so all urns
    are full. `distances` [1 + known, 1 + known] are those between updates: of zero, then of the clients `known`, which
    ascend.
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
    clusters = clusters_that_fit(weights, capacity, known, distances)
    clusters.sort(key=lambda cluster: (-weights[cluster].sum(), cluster))
    # The heaviest clusters each have an urn to themselves; what is left of the urns is filled with the other clients.
    open_urns = range(first, slots)
    room = np.full(slots, capacity)
    for urn, cluster in zip(open_urns, clusters, strict=False):
        urns[urn, cluster] = weights[cluster]
        room[urn] -= weights[cluster].sum()
    urn = first
    for client in (client for cluster in clusters[len(open_urns) :] for client in cluster):
        rest = int(weights[client])
        while rest:
            poured = min(rest, int(room[urn]))
            urns[urn, client] += poured
            room[urn] -= poured
            rest -= poured
            urn += int(room[urn] == 0)
    return urns


def clusters_that_fit(weights: Integers, capacity: int, known: Sequence[int], distances: Floats) -> list[list[int]]:
    """Return the largest branches of Ward's tree that fit into an urn; a cluster's clients ascend.

    Clients without a known update are joined first, in ascending order, as many as fit into one urn: the distance
    between them is 0.
    """
    idle = np.setdiff1d(np.arange(len(weights)), known)
    together = int(np.searchsorted(np.cumsum(weights[idle]), capacity, side="right"))
    first = 0 if len(idle) else 1  # without idle clients nothing is at zero
    points = [idle[:together].tolist()] * (1 - first) + [[client] for client in known]
    load = [int(weights[idle].sum())] * (1 - first) + [int(weights[client]) for client in known]
    counts = [len(idle)] * (1 - first) + [1] * len(known)
    branches: list[list[int] | None] = [*points]  # None where the branch does not fit, or is a part of one that does
    found = [[client] for client in idle[together:].tolist()]
    if together < len(idle):
        branches[0] = None
        found.append(points[0])
    for left, right in ward_merges(distances[first:, first:], counts):
        one, other, total = branches[left], branches[right], load[left] + load[right]
        load.append(total)
        branches[left] = branches[right] = None
        if one is not None and other is not None and total <= capacity:
            branches.append(one + other)
        else:
            found += [branch for branch in (one, other) if branch is not None]
            branches.append(None)
    found += [branch for branch in branches if branch is not None]
    return [sorted(branch) for branch in found if branch]


def ward_merges(distances: Floats, counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the merges of Ward's tree over points that stand for `counts` equal points each.

    Points are numbered from 0, and the i-th merge of n points is number n + i. A chain of nearest neighbours finds
    every merge in time O(n) (Müllner, "Modern hierarchical, agglomerative clustering algorithms", 2011); the squared
    distances are updated by the formula of Lance and Williams. Ties go to the lower number.
    """
    count = len(counts)
    sizes = np.array(counts, dtype=np.float32)
    squares = np.square(distances, dtype=np.float32)
    for point in np.flatnonzero(sizes > 1):
        squares[point] *= 2 * sizes[point] * sizes / (sizes[point] + sizes)
        squares[:, point] = squares[point]
    np.fill_diagonal(squares, np.inf)
    numbers, gone, chain = np.arange(count), np.zeros(count, np.float32), list[int]()  # gone: infinity where merged
    for merge in range(count - 1):
        if (count - merge) * 8 < len(gone) * 7:  # keep the columns that are written close together
            kept = np.flatnonzero(gone == 0)
            chain = np.searchsorted(kept, chain).tolist()
            squares, sizes, numbers, gone = squares[np.ix_(kept, kept)], sizes[kept], numbers[kept], gone[kept]
        one, other = _nearest_neighbours(squares, gone, chain)
        a, b = sizes[one], sizes[other]
        merged = (a + sizes) * squares[one]
        merged += (b + sizes) * squares[other]
        merged -= sizes * squares[one, other]
        merged /= a + b + sizes
        merged[other] = np.inf
        squares[other] = squares[:, other] = merged
        yield int(numbers[one]), int(numbers[other])
        sizes[other], numbers[other], gone[one] = a + b, count + merge, np.inf


def _nearest_neighbours(squares: Floats, gone: Floats, chain: list[int]) -> tuple[int, int]:
    """Return two points, in ascending order, each of which is the other's nearest; continues the chain to them."""
    if not chain:
        chain.append(int(gone.argmin()))
    while True:
        row = squares[chain[-1]]
        nearest = int((row + gone).argmin())
        if len(chain) > 1 and row[chain[-2]] <= row[nearest]:
            one, other = sorted((chain.pop(), chain.pop()))
            return one, other
        chain.append(nearest)
