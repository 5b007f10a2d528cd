"""Check that K checkpoints fit together, and report everything that differs at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from fedmr_merge.checkpoint.configuration import config_differences, read_configuration
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.errors import Difference, LayerMismatchError, PlanError

_TRIED = 8  #: names, and candidates for each, that are looked at to find by what the names of two models differ
_MOST_RENAMINGS = 6  #: of parts of a model: each costs a look at all of its names


def match_checkpoints(
    checkpoints: Sequence[Checkpoint],
    require_equal: Mapping[str, Sequence[str]] | None = None,
    ignore_config: Collection[str] = (),
) -> None:
    """Check that the models have the same tensors, dtypes, shapes and configuration, whatever their order and sharding.

    `require_equal` names further JSON sidecars and the keys in them that must agree, `ignore_config` keys that need
    not. Raises PlanError for fewer than two models and LayerMismatchError with every difference from slot 0; where
    that has no configuration, as a bare weight file, the configuration is compared with the first one that there is.
    """
    if len(checkpoints) < 2:
        raise PlanError(
            f"merging needs two models or more, found {len(checkpoints)}",
            hint="name K checkpoints of one architecture",
        )
    first = checkpoints[0]
    configs = [read_configuration(checkpoint, require_equal or {}, ignore_config) for checkpoint in checkpoints]
    described = next((slot for slot, config in enumerate(configs) if config), 0)
    differences: list[Difference] = []
    for slot, other in enumerate(checkpoints):
        differences += _renamed_differences(slot, first.tensors, other.tensors) if slot else ()
        differences += config_differences(slot, configs[described], configs[slot], described)
    if differences:
        raise LayerMismatchError(differences, [checkpoint.location for checkpoint in checkpoints])


def tensor_differences(
    slot: int, first: Mapping[str, TensorEntry], other: Mapping[str, TensorEntry]
) -> list[Difference]:
    """Return how the tensors of a slot differ from those that are expected, in names, dtypes and shapes."""
    found = []
    for name, entry in first.items():
        there = other.get(name)
        if there is None:
            found.append(Difference(slot, name, entry.signature, "absent"))
        elif (there.dtype, there.shape) != (entry.dtype, entry.shape):
            found.append(Difference(slot, name, entry.signature, there.signature))
    found += [Difference(slot, name, "absent", entry.signature) for name, entry in other.items() if name not in first]
    return found


class _Renaming(NamedTuple):
    """Tensors whose names begin differently in two models."""

    here: str  #: what they begin with in slot 0
    there: str
    names: Mapping[str, str]  #: of the other model → of slot 0


def _renamed_differences(
    slot: int, first: Mapping[str, TensorEntry], other: Mapping[str, TensorEntry]
) -> list[Difference]:
    """Return how the tensors of a slot differ; where most names differ by a prefix alone, that is one difference."""
    renamings = _renamings([name for name in first if name not in other], [name for name in other if name not in first])
    as_here = {there: here for renaming in renamings for there, here in renaming.names.items()}
    renamed = {as_here.get(name, name): entry for name, entry in other.items()} if renamings else other
    prefixes = [
        Difference(
            slot,
            "the name of 1 tensor" if len(names) == 1 else f"the names of {len(names):,} tensors",
            _quoted(here),
            _quoted(there),
            prefixes=(here, there),
        )
        for here, there, names in renamings
    ]
    return [*prefixes, *tensor_differences(slot, first, renamed)]


def _renamings(missing: Sequence[str], extra: Sequence[str]) -> list[_Renaming]:
    """Return by which prefixes most of the missing names differ from the extra ones; nothing if not most of them do.

    A library that moves parts of its models renames each of them: `language_model.model.` to `model.language_model.`,
    `vision_tower.` to `model.vision_tower.`.
    """
    found: list[_Renaming] = []
    left, spare = list(missing), dict.fromkeys(extra)  # in order: what is found must not depend on hashes
    while left and len(found) < _MOST_RENAMINGS and (prefixes := _differing_prefixes(left, spare)):
        here, there = prefixes
        names = {
            as_there: name
            for name in left
            if name.startswith(here) and (as_there := there + name.removeprefix(here)) in spare
        }
        known = {part for renaming in found for part in (renaming.here + renaming.there).split(".")} - {""}
        if found and len(names) == 1 and known.isdisjoint((here + there).split(".")):
            break
        found.append(_Renaming(here, there, names))
        renamed = set(names.values())
        left = [name for name in left if name not in renamed]
        spare = {name: None for name in spare if name not in names}
    return found if (len(missing) - len(left)) * 2 >= len(missing) else []


def _differing_prefixes(missing: Sequence[str], extra: Collection[str]) -> tuple[str, str] | None:
    """Return what many of the missing names begin with, and what stands in its place in the extra ones.

    One of the two is the other with further parts, as in `model.` and `model.language_model.`, or in none and
    `module.`, or has the same parts in another order.
    """
    by_end: dict[tuple[str, ...], list[str]] = {}
    for name in extra:
        parts = name.split(".")
        for end in {tuple(parts[-2:]), tuple(parts[-1:] if len(parts) < 4 else parts[-2:])}:
            if len(candidates := by_end.setdefault(end, [])) < _TRIED:
                candidates.append(name)
    pairs = {
        _heads(name, candidate)
        for name in missing[:_TRIED]
        for candidate in by_end.get(tuple(name.split(".")[-2:]), ())
    }
    found = [(_count(here, there, missing, extra), here, there) for here, there in pairs if _are_alike(here, there)]
    count, here, there = max(found, default=(0, "", ""))
    return (here, there) if count else None


def _heads(name: str, other: str) -> tuple[str, str]:
    """Return what two names begin with before the parts at the end in which they agree."""
    parts, others = name.split("."), other.split(".")
    while parts and others and parts[-1] == others[-1]:
        parts, others = parts[:-1], others[:-1]
    return "".join(f"{part}." for part in parts), "".join(f"{part}." for part in others)


def _are_alike(here: str, there: str) -> bool:
    """Return whether a prefix is the other with further parts somewhere in it, or has its parts in another order."""
    short, long = sorted((here.split(".")[:-1], there.split(".")[:-1]), key=len)
    if len(short) == len(long):
        return short != long and sorted(short) == sorted(long)
    return _is_within(short, long)


def _is_within(parts: Iterable[str], all_parts: Sequence[str]) -> bool:
    rest = iter(all_parts)
    return all(part in rest for part in parts)


def _count(here: str, there: str, missing: Sequence[str], extra: Collection[str]) -> int:
    return sum(name.startswith(here) and there + name.removeprefix(here) in extra for name in missing)


def _quoted(prefix: str) -> str:
    return f"`{prefix}…`" if prefix else "no prefix"
