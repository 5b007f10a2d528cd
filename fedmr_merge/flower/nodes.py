"""Which node of a Flower federation is which client of the recipe.

A node is known by its registered name, which the SuperLink binds to the node's key; nothing that a node says of itself
counts. The recipe's `deployment.clients` gives the client of each name; without it, `client-7` is client 7.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NO_NODE_NAMED = "the recipe's deployment.clients names no node for it"
"""Why a client has no node that is neither found nor missed: its name is not known."""
_NAMED = re.compile(r"client-(\d{1,9})\Z", re.ASCII)


@dataclass(frozen=True)
class Binding:
    """The clients of a recipe and the registered names of their nodes."""

    names: Mapping[int, str]  #: client → the registered name of its node

    @classmethod
    def of(cls, clients: int, named: Mapping[str, int]) -> Binding:
        """Return the binding of so many clients; `named` is the recipe's `deployment.clients`, which may be empty."""
        if named:
            return cls({number: name for name, number in sorted(named.items(), key=lambda pair: pair[1])})
        return cls({client: f"client-{client}" for client in range(clients)})


@dataclass(frozen=True)
class FoundNodes:
    """The nodes that can be sent messages."""

    ids: Mapping[int, int]  #: client → the id of its node
    faults: Mapping[int, str]  #: client → why it has no node

    @classmethod
    def among(cls, nodes: Iterable[Any], binding: Binding) -> FoundNodes:
        """Find the clients' nodes among those that a `Grid` or the SuperLink lists."""
        listed = [node for node in nodes if node.status in ("", "online")]
        times = Counter(node.name for node in listed)
        by_name = {node.name: node.node_id for node in listed}
        ids, faults = {}, {}
        for client, name in binding.names.items():
            if times[name] > 1:
                faults[client] = f"{times[name]} nodes are registered as {name!r}"
            elif name in by_name:
                ids[client] = by_name[name]
            else:
                faults[client] = f"its node {name!r} is not online"
        return cls(ids, faults)


def client_of_name(name: str, named: Mapping[str, int]) -> int | None:
    """Return the client that a registered name stands for; None where it stands for none."""
    if named:
        return named.get(name)
    found = _NAMED.match(name)
    return int(found[1]) if found else None
