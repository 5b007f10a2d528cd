"""Send instructions to nodes and wait for the replies, each of which is checked on its own.

`Grid.send_and_receive` loses the other replies when one of them cannot be read, and says nothing of those that do not
come in time. Here every message is asked for by its id: what is wrong with one reply concerns one slot.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedmr_merge.errors import shown
from fedmr_merge.flower.arrays import RefusedError

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

_POLL_SECONDS = 0.2  # at first; every look is a request for each message that is waited for
_LONGEST_POLL_SECONDS = 1.5
_LONGEST_REASON = 300
_MOST_PUSHES = 3  # of one message, each after a restart of the SuperLink

_ERRORS = {
    1: "the client app could not be loaded there",
    2: "the client app failed there",
    3: "the message did not reach the node",
    4: "the reply did not reach the server",
    5: "the node is not available",
    7: "the app is not valid there",
    8: "the client app crashed there",
}
"""What the codes of Flower's error replies mean. Such a reply has the SuperLink's id as its sender, not the node's."""


@dataclass(frozen=True)
class Outgoing:
    """An instruction on its way to a node."""

    slot: int
    node: int  #: the node's id
    message: Message


@dataclass
class Exchange:
    """What came of the instructions of a round: a reply's content or a reason for every slot, and what was ignored."""

    contents: dict[int, Any] = field(default_factory=dict)  #: slot → what `read` made of the reply
    reasons: dict[int, str] = field(default_factory=dict)  #: slot → why no reply of it counts
    ignored: list[str] = field(default_factory=list)  #: replies that belong to no slot that is waited for
    seconds: dict[int, float] = field(default_factory=dict)  #: slot → how long its reply took


def exchange(
    grid: Grid, outgoing: Iterable[Outgoing], timeout_seconds: float, read: Callable[[int, Any], Any]
) -> Exchange:
    """Send instructions and wait for the replies.

    Args:
        grid: Where to send.
        outgoing: The instructions, at most one for a slot. Each is taken right before it is sent, and is best made
            then, as its time runs from when it was made.
        timeout_seconds: How long to wait for replies, once all instructions are sent.
        read: Called with a slot and the content of its reply. What it raises as RefusedError is the slot's reason.
    """
    found, waiting = Exchange(), dict[str, Outgoing]()
    # One after the other, so that a message that is too large concerns its slot alone; arrays they share are sent once.
    for out in outgoing:
        if message_id := _push(grid, out.message):
            waiting[message_id] = out
        else:
            found.reasons[out.slot] = "the SuperLink did not take the message"
    begun = time.monotonic()
    deadline, pause = begun + timeout_seconds, _POLL_SECONDS
    while waiting:
        arrived = 0
        for message_id in list(waiting):
            for reply in _pull(grid, message_id, waiting, found):
                arrived += 1
                _settle(reply, waiting, found, read)
                _note_time(found, begun)
        if not waiting or time.monotonic() >= deadline:
            break
        if not arrived:
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(1.2 * pause, _LONGEST_POLL_SECONDS)
    for out in waiting.values():
        found.reasons[out.slot] = f"no reply within {timeout_seconds:g} seconds"
    return found


def _push(grid: Grid, message: Message) -> str | None:
    """Send a message and return its id; None where the SuperLink does not take it.

    A SuperLink that was killed while it took a message, and started again, refuses the rest of it. Sent anew as a
    whole, the message has the same id, and counts once.
    """
    from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

    for _ in range(_MOST_PUSHES):
        with contextlib.suppress(ObjectPushError):
            return next(iter(grid.push_messages([message])), None)
    return None


def _pull(grid: Grid, message_id: str, waiting: dict[str, Outgoing], found: Exchange) -> list[Message]:
    """Return the replies to a message, usually none or one. What cannot be read is the reason of its slot."""
    try:
        return list(grid.pull_messages([message_id]))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        # What a node sent is put together in this process, and whatever is wrong with it is met there.
        slot = waiting.pop(message_id).slot
        found.reasons[slot] = f"the reply cannot be read: {shown(error, _LONGEST_REASON)}"
        return []


def _settle(reply: Message, waiting: dict[str, Outgoing], found: Exchange, read: Callable[[int, Any], Any]) -> None:
    """Put a reply where it belongs: to the slot whose message it answers, if that one is still waited for."""
    metadata = reply.metadata
    out = waiting.get(metadata.reply_to_message_id)
    if out is None:
        sender = shown(metadata.src_node_id, 40)
        found.ignored.append(f"a reply of node {sender} answers no message that is waited for: a second or a late one")
        return
    if reply.has_error():
        del waiting[metadata.reply_to_message_id]
        found.reasons[out.slot] = _explained(reply.error)
        return
    if metadata.src_node_id != out.node:
        # The reply of the node that was asked may still come.
        sender = shown(metadata.src_node_id, 40)
        found.ignored.append(f"node {sender} replied to a message for node {out.node}")
        return
    del waiting[metadata.reply_to_message_id]
    try:
        found.contents[out.slot] = read(out.slot, reply.content)
    except RefusedError as error:
        found.reasons[out.slot] = f"the reply is refused: {error}"


def _note_time(found: Exchange, begun: float) -> None:
    for slot in found.contents:
        found.seconds.setdefault(slot, round(time.monotonic() - begun, 3))


def _explained(error: Any) -> str:
    meaning = _ERRORS.get(error.code, f"Flower reports error {error.code}")
    # A traceback ends with what went wrong.
    lines = [line.strip() for line in str(error.reason or "").strip().splitlines() if line.strip()]
    return f"{meaning}: {shown(lines[-1], _LONGEST_REASON)}" if lines else meaning
