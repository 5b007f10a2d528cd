"""A card that people edited: what they wrote is kept, and what is generated is written again.

The text between the two marking lines is generated, and so are the metadata keys that the new card has.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import yaml

from fedmr_merge.publish.card import BEGIN, END, PLACEHOLDER

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_KEY = re.compile(r"""^(?:([\w.-]+)|"([^"\\]*)"|'([^']*)')[ \t]*:(?=\s|$)""", re.MULTILINE)


def merge_card(old: str | None, new: str) -> str:
    """Return the new card, with what people wrote into the old one.

    The text before and after the generated part is kept, and so are metadata keys and tags that the new card does not
    have. An old card without the two marking lines was written by hand and stays as it is.
    """
    if old is None:
        return new
    if BEGIN not in old or END not in old[old.index(BEGIN) :]:
        return old
    old_metadata, old_body = split_card(old)
    new_metadata, new_body = split_card(new)
    if BEGIN not in old_body:  # swallowed by metadata that nothing ends
        return old
    before, rest = old_body.split(BEGIN, 1)
    after = rest.rsplit(END, 1)[1]
    generated = new_body[new_body.index(BEGIN) : new_body.index(END)] + END
    metadata = merge_metadata(old_metadata or "", new_metadata or "")
    return f"---\n{metadata}---\n{before}{generated}{after}"


def split_card(card: str) -> tuple[str | None, str]:
    """Return a card's metadata, without the --- lines, and its text. The metadata is None where there is none."""
    match = _FRONT_MATTER.match(card)
    return (match[1], card[match.end() :]) if match else (None, card)


def addressed(card: str, repo_id: str, revision: str | None) -> str:
    """Return a card that names its place on the Hub in its generated part."""
    if BEGIN not in card:
        return card
    before, rest = card.split(BEGIN, 1)
    generated, mark, after = rest.rpartition(END)
    # The Hub's own command has an option for the revision; a Hub id of ours contains it, with slashes written %2F.
    download = f"{repo_id} --revision {revision}" if revision else repo_id
    generated = generated.replace(f"hf download {PLACEHOLDER}", f"hf download {download}")
    keyword = f'"{repo_id}", revision="{revision}"' if revision else f'"{repo_id}"'
    generated = generated.replace(f'from_pretrained("{PLACEHOLDER}"', f"from_pretrained({keyword}")
    reference = f"{repo_id}@{quote(revision, safe='')}" if revision else repo_id
    return before + BEGIN + generated.replace(PLACEHOLDER, reference) + mark + after


def licensed(card: str, licence: str) -> str:
    """Return a card whose metadata names this licence."""
    metadata, body = split_card(card)
    if metadata is None:
        return f"---\nlicense: {licence}\n---\n{card}"
    others = "".join(block for key, block in _blocks(metadata) if key != "license")
    return f"---\nlicense: {licence}\n{others}---\n{body}"


def merge_metadata(old: str, new: str) -> str:
    """Return the lines of new metadata, with the keys and tags that only the old metadata has after them."""
    generated = dict(_blocks(new))
    theirs = [(key, block) for key, block in _blocks(old) if key not in generated]
    if "tags" in generated:
        tags = _tags(new)
        more = [tag for tag in _tags(old) if tag not in tags]
        if more:
            generated["tags"] += yaml.safe_dump(more, allow_unicode=True, width=10_000)
    text = "".join([*generated.values(), *(block for _, block in theirs)])
    return text if not text or text.endswith("\n") else f"{text}\n"


def _blocks(metadata: str) -> list[tuple[str, str]]:
    """Return the top-level keys of YAML metadata, each with its lines; lines before the first key have the key ""."""
    found: list[tuple[str, str]] = []
    starts = [(match.start(), next(filter(None, match.groups()), "")) for match in _KEY.finditer(metadata)]
    if not starts or starts[0][0] > 0:
        starts.insert(0, (0, ""))
    ends = [start for start, _ in starts[1:]] + [len(metadata)]
    for (start, key), end in zip(starts, ends, strict=True):
        found.append((key, metadata[start:end]))
    return [(key, block) for key, block in found if block]


def metadata_of(card: str) -> dict[str, Any]:
    """Return a card's metadata; it is empty where the card has none that can be read."""
    return _loaded(split_card(card)[0] or "")


def _loaded(metadata: str) -> dict[str, Any]:
    try:
        content: Any = yaml.safe_load(metadata)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _tags(metadata: str) -> list[str]:
    tags = _loaded(metadata).get("tags")
    return [str(tag) for tag in tags] if isinstance(tags, list) else []
