"""Make layer groups of tensors, join those that are tied, and pin those that stay."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from fedmr_merge.errors import RuleError
from fedmr_merge.layers.patterns import compile_pattern, shortened
from fedmr_merge.layers.plan import LayerGroup


def collect(
    group_of: Mapping[str, str],
    names: Collection[str],
    pinned: Iterable[str] = (),
    ties: Sequence[Sequence[str]] = (),
) -> tuple[LayerGroup, ...]:
    """Return the layer groups of tensors, from the group of each name; tied tensors are together."""
    order: dict[str, int] = {}  # of the groups: that of their first tensors
    for name in names:
        order.setdefault(group_of[name], len(order))
    stay = set(pinned)
    members = groupby(sorted(names, key=lambda name: order[group_of[name]]), key=group_of.__getitem__)
    groups = tuple(LayerGroup(group, tuple(tensors), group in stay) for group, tensors in members)
    return tie_groups(groups, ties)


def tie_groups(groups: Sequence[LayerGroup], ties: Sequence[Sequence[str]]) -> tuple[LayerGroup, ...]:
    """Join the groups of tied tensors, since what is one tensor in the model must move as one.

    The joined group has the name of the first.
    """
    joined = list(groups)
    for tie in ties:
        parts = [group for group in joined if set(group.tensors) & set(tie)]
        if len(parts) > 1:
            whole = LayerGroup(
                parts[0].name, tuple(t for part in parts for t in part.tensors), any(part.pinned for part in parts)
            )
            joined = [whole if group is parts[0] else group for group in joined if group not in parts[1:]]
    return tuple(joined)


def pin_groups(groups: Sequence[LayerGroup], patterns: Sequence[str]) -> tuple[LayerGroup, ...]:
    """Pin the groups that hold a tensor which matches one of the patterns.

    Raises RuleError for a pattern that is malformed or matches nothing.
    """
    if not patterns:
        return tuple(groups)
    pinned: set[str] = set()
    group_of = {tensor: group.name for group in groups for tensor in group.tensors}
    for text in patterns:
        try:
            pattern = compile_pattern(text)
        except (ValueError, re.error) as error:
            raise RuleError(
                f"--pin {shortened(text)}: malformed pattern: {error}",
                hint="`fedmr-merge docs recombine` explains patterns",
            ) from error
        found = pattern.match(list(group_of))
        matching = {group for group, kept in zip(group_of.values(), found, strict=True) if kept is not None}
        if not matching:
            raise RuleError(
                f"--pin {shortened(text)}: matches no tensor", hint="`fedmr-merge rules explain CKPT` shows their names"
            )
        pinned |= matching
    return tuple(replace(group, pinned=group.pinned or group.name in pinned) for group in groups)
