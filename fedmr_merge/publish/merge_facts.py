"""What the card of a recombination says, read from the `lineage.json` beside the models; and what of that file may be
told to others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fedmr_merge.errors import FedmrMergeError
from fedmr_merge.hub.listing import parse_origin
from fedmr_merge.lineage.model import AVERAGE, LINEAGE_FILE, Lineage
from fedmr_merge.lineage.reader import open_document, read_lineage
from fedmr_merge.lineage.writer import lineage_lines
from fedmr_merge.publish.facts import TAGS, read_json

#: In a lineage that is published: where a source lay that is not on the Hub.
UNPUBLISHED = "unpublished"


def find_lineage(folder: Path) -> tuple[Path, str | None] | None:
    """Return the output of a recombination that a folder is, and None; or that it is a part of, and which part.

    None when no recombination's lineage tells of the folder.
    """
    folder = folder.absolute()
    for place, part in ((folder, None), (folder.parent, folder.name)):
        try:
            lineage = read_lineage(place)
        except FedmrMergeError:
            continue
        if lineage.operation == AVERAGE:
            continue
        if part is None or part in lineage.outputs.values() or part == _mean_place(lineage):
            return place, part
    return None


def merge_facts(place: Path, part: str | None) -> dict[str, Any]:
    """Return the facts of a recombination's output, or of one model of it: what its card's template is rendered with.

    Raises VerificationError when its lineage is damaged.
    """
    lineage = read_lineage(place)
    with (place / LINEAGE_FILE).open("rb") as stream:
        content, _ = open_document(stream)
    sources = [_source(source) for source in content["sources"]]
    slot = next((slot for slot, path in lineage.outputs.items() if path == part), None)
    licences = {source["repo"]: source["license"] for source in sources if source["repo"]}
    stated = {licence for licence in licences.values() if licence}
    agreed = len(stated) == 1 and all(source["license"] for source in sources)
    model = place / (part or _mean_place(lineage) or next(iter(lineage.outputs.values())))
    return {
        "part": part,
        "slot": slot,
        "is_mean": part is not None and slot is None,
        "tags": list(TAGS),
        "parents": list(licences),
        "licenses": licences,
        "license": min(stated) if agreed else None,
        "license_conflict": len(stated) > 1,
        "config": _config(model),
        "sources": sources,
        **_public_rule(content),
        "drawn": content["drawn"],
        "groups": [
            {"group": group, "tensors": len(content["groups"][group]), "sources": list(permutation)}
            for group, permutation in lineage.plan.permutations.items()
        ],
        "slots": lineage.plan.slots,
        "outputs": list(lineage.outputs.values()),
        "mean": {**lineage.mean, "place": _mean_place(lineage)} if lineage.mean else None,
        "hashed": bool(lineage.tensors) and all(origin.sha256 for origin in lineage.tensors),
        "tensors": len(lineage.tensors),
        "made_by": content["made_by"],
    }


def published_lineage(path: Path) -> str | None:
    """Return the content of a `lineage.json` without any folder of this machine; None where the file is not a lineage.

    Parents on the Hub keep their name and commit. Of any other parent only the name of the file or folder itself is
    published, in a folder that does not exist, so that `verify` reports that the parent is not there. Everything else,
    hashes and byte ranges included, stays: the outputs can still be verified and undone.
    """
    try:
        with path.open("rb") as stream:
            head, tensors = open_document(stream)
            sources = [{**source, "path": _public_place(source)} for source in head["sources"]]
            head |= {**_public_rule(head), "sources": sources}
            return "".join(lineage_lines(head, tensors))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _public_rule(content: Mapping[str, Any]) -> dict[str, str]:
    """A layer rule and how it was found, of a rule file only the file's own name; nothing for an average."""
    if content.get("operation") == AVERAGE:
        return {}
    rule, found = str(content["rule"]), str(content["rule_found"])
    name = PurePosixPath(rule).name
    return {"rule": name, "rule_found": found.replace(rule, name)}


def _public_place(source: Mapping[str, Any]) -> str:
    place = str(source["path"])
    if parse_origin(place) or place.startswith(f"{UNPUBLISHED}/"):
        return place
    return f"{UNPUBLISHED}/{int(source['slot']):02d}/{PurePosixPath(place).name}"


def _source(source: Mapping[str, Any]) -> dict[str, Any]:
    place = str(source["path"])
    ref = parse_origin(place)
    told = source.get("license") or ("none stated" if "license" in source else "not recorded")
    return {
        "slot": source["slot"],
        "name": str(ref) if ref else PurePosixPath(place).name,
        "repo": ref.repo_id if ref else None,
        "commit": ref.revision if ref else None,
        "subfolder": ref.subfolder if ref else "",
        "license": source.get("license") if ref else None,
        "license_told": told if ref else "",
        "bytes": sum(int(file["bytes"]) for file in source["files"]),
    }


def _mean_place(lineage: Lineage) -> str | None:
    """The folder of the mean in the output folder."""
    return PurePosixPath(lineage.mean["path"]).parts[0] if lineage.mean else None


def _config(model: Path) -> Mapping[str, Any]:
    """The config.json of a model, empty where it has none."""
    try:
        config = read_json(model / "config.json") if model.is_dir() else None
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}
