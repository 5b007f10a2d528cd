"""A stand-in for Flower's `Grid`: the nodes are functions of this process, and any of them may be hostile."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fedmr_merge.flower.client import answer
from fedmr_merge.recipe.schema import Recipe

Node = Callable[[Any], Any]
"""A message → the messages that come back for it: none, one or several."""


class StandInGrid:
    """Delivers messages to nodes of this process, and their replies at the next pull.

    Args:
        nodes: what each node does with a message, by its registered name.
        offline: the registered names of nodes that are not online.
    """

    def __init__(self, nodes: dict[str, Node], offline: tuple[str, ...] = ()) -> None:
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1  # as Flower sets them in a ServerApp
        self.nodes, self.offline = nodes, offline
        self.ids = {name: 1000 + number for number, name in enumerate(nodes)}
        self.sent: list[Any] = []
        self._replies: dict[str, list[Any]] = {}

    def get_nodes(self) -> list[Any]:
        return [
            SimpleNamespace(node_id=node_id, name=name, status="offline" if name in self.offline else "online")
            for name, node_id in self.ids.items()
        ]

    def push_messages(self, messages: Any) -> list[str]:
        names = {node_id: name for name, node_id in self.ids.items()}
        pushed = []
        for message in messages:
            message_id = f"message-{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = message_id
            self.sent.append(message)
            self._replies[message_id] = list(self.nodes[names[message.metadata.dst_node_id]](message))
            pushed.append(message_id)
        return pushed

    def pull_messages(self, message_ids: Any) -> list[Any]:
        return [reply for message_id in message_ids for reply in self._replies.pop(message_id, [])]


def honest(recipe: Recipe, change: Callable[[Any], Any] = lambda content: content) -> Node:
    """Return a node that follows the recipe; `change` is what becomes of the content of its reply."""
    from flwr.app import Message

    return lambda message: [Message(change(answer(message.content, recipe)), reply_to=message)]


def everybody(recipe: Recipe, clients: int) -> dict[str, Node]:
    """Return one honest node for each client."""
    return {f"client-{client}": honest(recipe) for client in range(clients)}
