"""What the card of a recombination or an average says, read from the `lineage.json` beside the models; and what of
that file may be published.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.errors import FedmrMergeError, HubError
from fedmr_merge.hub.listing import CARD_KEYS, HubRef, card_facts, parse_origin
from fedmr_merge.lineage.model import AVERAGE, HERE, Lineage
from fedmr_merge.lineage.parents import Parent
from fedmr_merge.lineage.reader import open_document, read_lineage
from fedmr_merge.lineage.writer import lineage_lines
from fedmr_merge.merging.adapters import mean_entries
from fedmr_merge.publish.card import CARD_FILE
from fedmr_merge.publish.card_merge import metadata_of
from fedmr_merge.publish.facts import TAGS, read_json, tool_address

#: In a lineage that is published: the folder of a parent that is not on the Hub.
UNPUBLISHED = "unpublished"
_UNNAMED = ("other", "unknown")
_MAX_CARD_BYTES = 4 << 20


def find_lineage(folder: Path) -> tuple[Lineage, str | None] | None:
    """Return the lineage of the output that a folder is, and None; or of the output that it is a part of, and which.

    None when there is no lineage of a recombination or an average that describes the folder.
    """
    folder = folder.absolute()
    for place, part in ((folder, None), (folder.parent, folder.name)):
        try:
            lineage = read_lineage(place)
        except FedmrMergeError:
            continue
        if part is None or part in lineage.outputs.values() or part == _mean_place(lineage):
            return lineage, part
    return None


def merge_facts(lineage: Lineage, part: str | None) -> dict[str, Any]:
    """Return the facts of a merge's output, or of one model of it: what its card's template is rendered with."""
    sources = [_source(parent) for parent in lineage.parents]
    first = next(iter(lineage.outputs), None)
    tensors = Counter(origin.group for origin in lineage.tensors if origin.slot == first)
    slot = next((slot for slot, path in lineage.outputs.items() if path == part), None)
    averaged = lineage.operation == AVERAGE
    model = lineage.folder / (part or _mean_place(lineage) or next(iter(lineage.outputs.values()), ""))
    config = _config(model)
    return {
        "operation": lineage.operation,
        "part": part,
        "slot": slot,
        "is_mean": averaged or (part is not None and slot is None),
        "is_one_model": averaged or part is not None,
        "tags": list(TAGS) if not averaged else ["merge", "model-averaging"],
        **_licence_facts(sources),
        **_common_facts(lineage),
        "config": config,
        "task_tag": _task_tag(config),
        "sources": sources,
        **({} if averaged else _public_rule(lineage.facts)),
        "drawn": lineage.facts.get("drawn"),
        "groups": [
            {"group": group, "tensors": tensors[group], "sources": list(permutation)}
            for group, permutation in lineage.plan.permutations.items()
        ],
        "slots": len(sources),
        "outputs": list(lineage.outputs.values()),
        "mean": {"weights": None, "out_dtype": None, "adapters": None, **lineage.mean, "place": _mean_place(lineage)}
        if lineage.mean
        else None,
        "hashed": lineage.hashed and (averaged or bool(lineage.tensors)),
        "tensors": len(lineage.tensors) or len(lineage.parents[0].tensors),
        "parameters": sum(entry.parameters for entry in _entries(lineage)),
        "made_by": lineage.facts["made_by"],
        "tool": tool_address(),
    }


def _licence_facts(sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parents on the Hub, their licences, and the one licence that the merged model may claim, if any.

    `other` stands for any licence without an identifier: two of them are not known to be the same.
    """
    licences = {source["repo"]: source["license"] for source in sources if source["repo"]}
    stated = {licence for licence in licences.values() if licence}
    unnamed = [repo for repo, licence in licences.items() if licence in _UNNAMED]
    agreed = len(stated) == 1 and not unnamed and all(source["license"] for source in sources)
    return {
        "parents": list(licences),
        "licenses": licences,
        "license": min(stated) if agreed else None,
        "license_conflict": len(stated) > 1 or len(unnamed) > 1,
        "unnamed_licenses": unnamed,
    }


def _common_facts(lineage: Lineage) -> dict[str, Any]:
    """Return what the cards of all parents agree on, None for each key on which they do not."""
    cards = [
        card_facts(_local_card(lineage, parent) if parent.card is None else parent.card) for parent in lineage.parents
    ]
    first = cards[0]
    return {f"common_{key}": first[key] if _agree(key, cards) else None for key in CARD_KEYS}


def _agree(key: str, cards: Sequence[Mapping[str, Any]]) -> bool:
    return key in cards[0] and all(card.get(key) == cards[0][key] for card in cards)


def _local_card(lineage: Lineage, parent: Parent) -> dict[str, Any]:
    """Return the metadata of a parent's card where the parent is a folder that is still there."""
    if parent.hub is not None or not parent.is_folder:
        return {}
    path = parent.place(lineage.folder) / CARD_FILE
    try:
        if not path.is_file() or path.stat().st_size > _MAX_CARD_BYTES:
            return {}
        return metadata_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError):
        return {}


def published_lineage(path: Path) -> Iterator[str] | None:
    """Return the content of a `lineage.json`, piece by piece, without any folder of this machine; None where the file
    is not a lineage.

    Parents on the Hub keep their name and commit. Of any other parent only the name of the file or folder itself is
    published, in a folder that does not exist, so that `verify` reports that the parent is not there. Everything else,
    hashes and byte ranges included, stays: the outputs can still be verified and undone. The iterator raises HubError
    where the list of tensors is damaged.
    """
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(path.open("rb"))
            head, tensors = open_document(stream)
            sources = [{**source, "path": _public_place(source)} for source in head["sources"]]
            rule = {} if head.get("operation") == AVERAGE else _public_rule(head)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
        return _lines(path, {**head, **rule, "sources": sources}, tensors, stack.pop_all())


def _lines(path: Path, head: Mapping[str, Any], tensors: Iterator[Any], stack: contextlib.ExitStack) -> Iterator[str]:
    with stack:  # closes the file that the tensors are read from
        try:
            yield from lineage_lines(head, tensors)
        except (OSError, ValueError, RecursionError) as error:
            hint = "take the file from a copy, or remove it"
            raise HubError(f"{path}: damaged: {error!s:.200}", hint=hint) from error


def _public_rule(content: Mapping[str, Any]) -> dict[str, str]:
    """Return a layer rule and how it was found; of a rule file only the file's own name."""
    rule, found = str(content["rule"]), str(content["rule_found"])
    name = PurePosixPath(rule).name
    return {"rule": name, "rule_found": found.replace(rule, name)}


def _public_place(source: Mapping[str, Any]) -> str:
    place = str(source["path"])
    if parse_origin(place) or place.startswith(f"{UNPUBLISHED}/"):
        return place
    return f"{UNPUBLISHED}/{int(source['slot']):02d}/{PurePosixPath(place).name}"


def _source(parent: Parent) -> dict[str, Any]:
    """Return the row of a parent in the card's table."""
    ref = parent.hub
    stated = parent.licence or ("none stated" if parent.licence_recorded else "not recorded")
    return {
        "slot": parent.slot,
        "name": str(ref) if ref else PurePosixPath(parent.path).name,
        "repo": ref.repo_id if ref else None,
        "url": _address(ref) if ref else None,
        "commit": ref.revision if ref else None,
        "subfolder": ref.subfolder if ref else "",
        "license": parent.licence if ref else None,
        "license_stated": stated if ref else "",
        "bytes": sum(file.header.file_bytes for file in parent.files),
    }


def _address(ref: HubRef) -> str:
    """Return where people look at a parent; a card on the Hub may use addresses without a host."""
    return f"https://huggingface.co/{ref.repo_id}/tree/{ref.revision}" + (
        f"/{quote(ref.subfolder)}" if ref.subfolder else ""
    )


def _mean_place(lineage: Lineage) -> str | None:
    """Return the folder of the mean in the output folder; None without one, or where it is the output folder itself."""
    path = str(lineage.mean["path"]) if lineage.mean else HERE
    return None if path == HERE else PurePosixPath(path).parts[0]


def _entries(lineage: Lineage) -> Iterable[TensorEntry]:
    """Return the tensors of one of the output's models."""
    if lineage.exact_adapters is None:
        return lineage.parents[0].tensors.values()
    return mean_entries([parent.tensors for parent in lineage.parents], lineage.exact_adapters["rank"]).values()


def _task_tag(config: Mapping[str, Any]) -> str | None:
    """Return what the Hub calls the task of a model that this package trained; None for one that is not known here."""
    if config.get("library_name") != "fedmr-merge":
        return None
    from fedmr_merge.federated.catalogue import TASKS  # imports torch

    try:
        return TASKS.find(str(config.get("task", "image-classification"))).pipeline_tag  # 0.1.0 trained images alone
    except (KeyError, FedmrMergeError, ImportError):
        return None


def _config(model: Path) -> Mapping[str, Any]:
    """Return the config.json of a model; it is empty where the model has none."""
    try:
        config = read_json(model / "config.json") if model.is_dir() else None
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}
