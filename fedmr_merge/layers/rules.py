"""Layer rules: every tensor of a model belongs to exactly one layer group.

A rule is named by one text: a built-in rule (`layer`, or a file of `rulesets/`), `segments:N`, `auto`, or the path of
a rule file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.errors import RuleError
from fedmr_merge.layers.layer_rule import layers_from_names
from fedmr_merge.layers.plan import LayerGroup

if TYPE_CHECKING:
    from fedmr_merge.checkpoint.open import Checkpoint
    from fedmr_merge.layers.rule_language import Rule, RuleSet

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Grouping:
    """The layer groups of a model, and how they were found."""

    rule: str  #: the rule that was used
    found: str  #: how, in words
    groups: tuple[LayerGroup, ...]
    require_equal: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: JSON sidecar -> keys that must agree
    tied: tuple[tuple[str, ...], ...] = ()  #: tensors that are one in the model and were put into one group
    perhaps_tied: tuple[tuple[str, ...], ...] = ()  #: tensors of several groups that are one if their bytes are equal

    @cached_property
    def group_of(self) -> dict[str, str]:
        """Tensor name -> group name."""
        return {tensor: group.name for group in self.groups for tensor in group.tensors}


def rule_names() -> tuple[str, ...]:
    """Return the names of the built-in rules."""
    files = resources.files(__package__).joinpath("rulesets").iterdir()
    names = sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))
    return ("auto", "layer", "segments:N", *names)


def describe_rules() -> list[tuple[str, str]]:
    """Return (name, what its layer groups are) of every built-in rule."""
    described = {
        "auto": "the rule set below whose family the names show best, else layer",
        "layer": "the paper's: a convolution or linear layer with its bias and its normalisation, statistics included",
        "segments:N": "N contiguous runs of tensors, in natural order of their names",
    }
    return [(name, described.get(name) or _built_in(name).description) for name in rule_names()]


def check_rule_file(path: Path, shapes: Shapes) -> list[str]:
    """Return what is wrong with a rule file for these tensors: unmatched or ambiguous ones, rules that take nothing,
    ties of tensors that are not there.

    Ambiguous is a tensor that two rules put into different groups. A rule that matches everything is a fallback and
    may follow any other.
    """
    from fedmr_merge.layers.rule_language import read_rule_file

    rule_set = read_rule_file(path)
    faults: list[str] = []
    used: set[Rule] = set()
    for name in shapes:
        matches = [(rule, group) for rule in rule_set.rules if (group := rule.group_of(name)) is not None]
        if not matches:
            if not rule_set.layer_otherwise:
                faults.append(f"{name!r} matches no rule")
            continue
        used.add(matches[0][0])
        first, group = matches[0]
        for rule, other in matches[1:]:
            if not rule.is_fallback and other != group:
                faults.append(
                    f"{name!r} is ambiguous: line {first.line} says {group!r}, line {rule.line} says {other!r}"
                )
    faults += [f"line {r.line}: the rule {r.match!r} takes no tensor" for r in rule_set.rules if r not in used]
    tied = dict.fromkeys(name for tie in rule_set.ties for name in tie)
    faults += [
        f"line {rule_set.lines['ties', name]}: ties: there is no tensor {name!r}" for name in tied if name not in shapes
    ]
    return faults


def check_require_equal(path: Path, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return which files and keys of a rule file's `require_equal` none of the checkpoints has.

    Raises CheckpointError for such a file that is not JSON.
    """
    from fedmr_merge.layers.rule_language import read_rule_file

    rule_set = read_rule_file(path)
    faults: list[str] = []
    for file, keys in rule_set.require_equal.items():
        found = [
            checkpoint.read_json(sidecar)
            for checkpoint in checkpoints
            for sidecar in checkpoint.sidecars
            if sidecar.rpartition("/")[2] == file  # in any component's folder
        ]
        if not found:
            faults.append(f"line {rule_set.lines['require_equal', file]}: require_equal: no checkpoint has {file!r}")
            continue
        there = {key for content in found if isinstance(content, dict) for key in content}
        faults += [
            f"line {rule_set.lines['require_equal', file, key]}: require_equal: no {file} has the key {key!r}"
            for key in keys
            if key not in there
        ]
    return faults


def compared_files(rule: str) -> Collection[str]:
    """Return the JSON files that a rule compares beside the configuration. Raises RuleError for a rule set that is
    unknown or malformed.
    """
    is_rule_set = rule not in ("auto", "layer") and rule.partition(":")[0] != "segments"
    return load_rule_set(rule).require_equal.keys() if is_rule_set else ()


def group_tensors(rule: str, shapes: Shapes, layers: Mapping[str, str] | None = None) -> tuple[LayerGroup, ...]:
    """Return the layer groups of tensors under a rule, in the order of the tensors.

    `layers` (tensor name -> layer name) is the grouping that the trainer writes; only the rule `layer` uses it.
    Raises RuleError for an unknown or malformed rule, and for tensors that no rule matches.
    """
    return apply_rule(rule, shapes, layers).groups


def apply_rule(rule: str, shapes: Shapes, layers: Mapping[str, str] | None = None) -> Grouping:
    """Group tensors under a rule and say how the groups were found; see `group_tensors`."""
    if rule == "auto":
        return _auto(shapes, layers)
    if rule == "layer":
        return _layer(shapes, layers)
    if rule.partition(":")[0] == "segments":
        return _segments(rule, shapes)
    rule_set = load_rule_set(rule)
    return Grouping(
        rule, rule_set.description or f"by the rules of {rule}", _match(rule_set, shapes), rule_set.require_equal
    )


def load_rule_set(rule: str) -> RuleSet:
    """Return a built-in rule set by its name, or the rule file of that path."""
    from fedmr_merge.layers.rule_language import read_rule_file

    if rule.endswith((".yaml", ".yml")) or "/" in rule:
        return read_rule_file(Path(rule))
    if rule not in rule_names():
        raise RuleError(
            f"unknown layer rule {rule!r}, built in are {', '.join(rule_names())}",
            hint="a rule file is named by its path, ending in .yaml",
        )
    return _built_in(rule)


@cache
def _built_in(name: str) -> RuleSet:
    from fedmr_merge.layers.rule_language import parse_rules

    text = resources.files(__package__).joinpath("rulesets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return parse_rules(text, f"rulesets/{name}.yaml", name)


def _auto(shapes: Shapes, layers: Mapping[str, str] | None) -> Grouping:
    """The rule set with the most `detect` patterns of those whose patterns are all found among the names."""
    if not _written_by_trainer(shapes, layers):
        rule_sets = [_built_in(name) for name in rule_names() if name not in ("auto", "layer", "segments:N")]
        for rule_set in sorted(rule_sets, key=lambda rule_set: -len(rule_set.detect)):
            if rule_set.detects(list(shapes)):
                found = f"picked by the names: {rule_set.description}"
                return Grouping(rule_set.name, found, _match(rule_set, shapes), rule_set.require_equal)
    return _layer(shapes, layers)


def _written_by_trainer(shapes: Shapes, layers: Mapping[str, str] | None) -> bool:
    return layers is not None and shapes.keys() <= layers.keys()


def _layer(shapes: Shapes, layers: Mapping[str, str] | None) -> Grouping:
    if layers is not None and _written_by_trainer(shapes, layers):
        return Grouping("layer", "as the trainer wrote it into the file's metadata", _collect(layers, shapes))
    by_name, joined = layers_from_names(shapes)
    found = (
        f"paired by name: {joined} normalisation{'s' if joined > 1 else ''} joined their layer"
        if joined
        else "by module: no normalisation pairs with a layer by its name"
    )
    return Grouping("layer", found, _collect(by_name, shapes))


def _segments(rule: str, shapes: Shapes) -> Grouping:
    """N contiguous runs of tensors, in natural order of their names, as even in number as can be."""
    count = rule.removeprefix("segments:")
    if not count.isdecimal() or not 1 <= int(count) <= len(shapes):
        raise RuleError(
            f"layer rule {rule!r}: N of segments:N is a number from 1 to that of the tensors, {len(shapes)}",
            hint=f"write for example segments:{min(4, len(shapes))}",
        )
    names = sorted(shapes, key=natural_order)
    runs = {name: f"segment.{position * int(count) // len(names)}" for position, name in enumerate(names)}
    return Grouping(rule, f"{count} contiguous runs of {len(names)} tensors", _collect(runs, names))


def natural_order(name: str) -> str:
    """Sort key under which layer2 comes before layer10."""

    def number(found: re.Match[str]) -> str:
        # Numbers compare by their length, then digit by digit: they may have thousands of digits.
        digits = found.group().lstrip("0")
        return f"\0{chr(min(len(digits), sys.maxunicode))}{digits}"

    return re.sub("[0-9]+", number, name)


def _match(rule_set: RuleSet, shapes: Shapes) -> tuple[LayerGroup, ...]:
    group_of: dict[str, str] = {}
    pinned: set[str] = set()
    unmatched = []
    for name in shapes:
        for rule in rule_set.rules:
            group = rule.group_of(name)
            if group is not None:
                group_of[name] = group
                if rule.pinned:
                    pinned.add(group)
                break
        else:
            unmatched.append(name)
    if unmatched and rule_set.layer_otherwise:
        group_of |= layers_from_names({name: shapes[name] for name in unmatched})[0]
    elif unmatched:
        more = f" and {len(unmatched) - 5} more" if len(unmatched) > 5 else ""
        raise RuleError(
            f"layer rule {rule_set.name!r}: no rule matches {', '.join(map(repr, unmatched[:5]))}{more}",
            hint='add a rule for them; `{match: "**", group: rest}` at the end takes what is left',
        )
    return _collect(group_of, shapes, pinned, rule_set.ties)


def _collect(
    group_of: Mapping[str, str],
    names: Collection[str],
    pinned: Iterable[str] = (),
    ties: Sequence[Sequence[str]] = (),
) -> tuple[LayerGroup, ...]:
    order: dict[str, int] = {}  # of the groups: that of their first tensors
    for name in names:
        order.setdefault(group_of[name], len(order))
    stay = set(pinned)
    members = groupby(sorted(names, key=lambda name: order[group_of[name]]), key=group_of.__getitem__)
    groups = tuple(LayerGroup(group, tuple(tensors), group in stay) for group, tensors in members)
    return tie_groups(groups, ties)


def tie_groups(groups: Sequence[LayerGroup], ties: Sequence[Sequence[str]]) -> tuple[LayerGroup, ...]:
    """Join the groups of tied tensors: what is one tensor in the model must move as one.

    The first group's name stays.
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
    """Pin the groups that hold a tensor matching one of the patterns.

    Raises RuleError for a pattern that is malformed or matches nothing.
    """
    if not patterns:
        return tuple(groups)
    from fedmr_merge.layers.rule_language import compile_pattern

    pinned: set[str] = set()
    for text in patterns:
        try:
            pattern = compile_pattern(text)
        except (ValueError, re.error) as error:
            raise RuleError(
                f"--pin {text!r}: malformed pattern: {error}", hint="docs/recombine.md explains patterns"
            ) from error
        matching = {group.name for group in groups if any(pattern.fullmatch(tensor) for tensor in group.tensors)}
        if not matching:
            raise RuleError(
                f"--pin {text!r}: matches no tensor", hint="`fedmr-merge rules explain CKPT` shows their names"
            )
        pinned |= matching
    return tuple(replace(group, pinned=group.pinned or group.name in pinned) for group in groups)
