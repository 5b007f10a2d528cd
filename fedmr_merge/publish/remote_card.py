"""The card on the Hub, which people edit there: a push merges it with the card that is sent, and loses nothing.

What people write stands outside of the generated part; of a card without one, all of it. Which side changed since the
last push is decided by a fingerprint of the local text, which each push records in its commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from fedmr_merge.errors import HubError
from fedmr_merge.publish.card import BEGIN, CARD_FILE, END
from fedmr_merge.publish.card_merge import licensed, merge_card, merge_metadata, metadata_of, split_card

#: Metadata that follows from the rest of the card, or that is merged item by item.
_NOT_NOTED = ("license", "license_name", "license_link", "tags", "model-index")
_SHOWN = 60  # characters of a value


@dataclass(frozen=True)
class MergedCard:
    """The card to send, and what its readers on the Hub should know of the merge, a line each."""

    text: str
    notes: tuple[str, ...] = ()


def merge_remote_card(
    local: str, remote: str, licence: str | None, last_pushed: Callable[[], str | None], where: str
) -> MergedCard:
    """Merge the card that would be sent with the one on the Hub.

    What people wrote on the Hub is kept: text, metadata keys that the local card does not have, tags, and the licence
    unless another one is asked for with `licence`. Text that was changed here since the last push is taken from here;
    `last_pushed` returns the `fingerprint` that the last push recorded, None where there is none. `where` is the
    address of the card, for messages.

    Raises HubError when the text was changed on both sides, and each has lines that the other lacks.
    """
    keeps_remote = _keeps_remote_text(local, remote, last_pushed, where)
    notes = [f"{CARD_FILE}: the text that was written on the Hub is kept"] if keeps_remote else []
    text = _merged(local, remote, keeps_remote)
    ours, theirs = metadata_of(local), metadata_of(remote)
    text = _with_licence(text, ours, theirs, licence, notes)
    notes += _metadata_notes(ours, theirs)
    if split_card(text)[1] == split_card(remote)[1] and metadata_of(text) == theirs:
        text = remote  # the same in other words
    return MergedCard(text, tuple(notes))


def fingerprint(card: str) -> str:
    """Return 16 hex digits that stand for the text which people wrote into a card."""
    return hashlib.sha256(own_text(card).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def own_text(card: str) -> str:
    """Return what stands outside of a card's generated part, without its metadata; the whole text without such a part.

    Line ends, and empty space at both ends, do not count: editors change them.
    """
    _, body = split_card(card)
    return "\n".join(part.strip() for part in _outside(body) if part.strip()).replace("\r\n", "\n")


def _outside(body: str) -> tuple[str, ...]:
    before, mark, rest = body.partition(BEGIN)
    _, end, after = rest.rpartition(END)
    return (before, after) if mark and end else (body,)


def _is_generated(card: str) -> bool:
    return len(_outside(split_card(card)[1])) == 2


def _keeps_remote_text(local: str, remote: str, last_pushed: Callable[[], str | None], where: str) -> bool:
    """Whether to keep the text of the Hub's card. Raises HubError when either choice would lose something."""
    ours, theirs = own_text(local), own_text(remote)
    if ours == theirs or not theirs:
        return False
    if not ours and _is_generated(local):
        return True
    pushed = last_pushed()
    if pushed is not None and pushed in (fingerprint(remote), fingerprint(local)):
        return pushed == fingerprint(local)
    here, there = set(ours.splitlines()), set(theirs.splitlines())
    if there <= here or here <= there:
        return not there <= here
    raise HubError(
        f"{CARD_FILE}: what people wrote into the card was changed both here and on the Hub since the last push",
        hint=f"copy into your {CARD_FILE} what you want to keep of {where}, delete the rest there, and push again",
    )


def _merged(local: str, remote: str, keeps_remote: bool) -> str:
    if keeps_remote and _is_generated(local) and _is_generated(remote):
        return merge_card(remote, local)
    body = split_card(remote if keeps_remote else local)[1]
    metadata = merge_metadata(split_card(remote)[0] or "", split_card(local)[0] or "")
    return f"---\n{metadata}---\n{body}" if metadata else body


def _with_licence(
    text: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], asked: str | None, notes: list[str]
) -> str:
    here, there = ours.get("license"), theirs.get("license")
    if there is None or here == there:
        return text
    if asked is not None or (here is not None and not isinstance(there, str)):
        notes.append(f"{CARD_FILE}: the licence on the Hub, {_shown(there)}, is replaced by {_shown(here)}")
        return text
    if here is None:
        return text
    notes.append(
        f"{CARD_FILE}: the licence on the Hub, {_shown(there)}, is kept; here it is {_shown(here)} "
        f"(--license {_shown(here)} replaces it)"
    )
    return licensed(text, str(there))


def _metadata_notes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    kept = [key for key in theirs if key not in ours and key not in _NOT_NOTED]
    if kept:
        yield f"{CARD_FILE}: kept of the metadata on the Hub: {', '.join(map(_shown, kept))}"
    for key, value in theirs.items():
        if key in ours and key not in _NOT_NOTED and ours[key] != value:
            yield f"{CARD_FILE}: {_shown(key)} on the Hub, {_shown(value)}, is replaced by {_shown(ours[key])}"


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10_000)
    text = " ".join(text.removesuffix("...\n").split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
