"""Layer rules: every tensor of a model belongs to exactly one layer group.

A rule is named by one string: a built-in rule (`layer`, or a file of `rulesets/`), `segments:N`, `auto`, or the path of
a rule file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.errors import RuleError
from fedmr_merge.layers.adapter_names import factors_apart
from fedmr_merge.layers.groups import collect
from fedmr_merge.layers.layer_rule import layers_from_names, statistics_without_layer
from fedmr_merge.layers.modules import Shapes
from fedmr_merge.layers.natural_order import natural_order
from fedmr_merge.layers.patterns import shortened
from fedmr_merge.layers.plan import LayerGroup
from fedmr_merge.layers.rule_files import read_built_in, rule_file_names

if TYPE_CHECKING:
    from fedmr_merge.layers.rule_language import RuleSet

#: The input embedding of a language model, by its name.
_EMBEDDING = re.compile(r"(?:.*\.)?(?:embed_tokens|wte|embed_in|(?:word|tok)_embeddings|embeddings?|shared)\.weight")


@dataclass(frozen=True)
class Grouping:
    """The layer groups of a model, and how they were found."""

    rule: str  #: the rule that was used
    found: str  #: how the groups were found, for people
    groups: tuple[LayerGroup, ...]
    require_equal: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: JSON sidecar -> keys that must agree
    tied: tuple[tuple[str, ...], ...] = ()  #: tensors that are one in the model and were put into one group
    perhaps_tied: tuple[tuple[str, ...], ...] = ()  #: tensors of several groups that are one if their bytes are equal
    warnings: tuple[str, ...] = ()  #: what the user should know before models are grouped like this

    @cached_property
    def group_of(self) -> dict[str, str]:
        """Tensor name -> group name."""
        return {tensor: group.name for group in self.groups for tensor in group.tensors}


def rule_names() -> tuple[str, ...]:
    """Return the names of the built-in rules."""
    return ("auto", "layer", "segments:N", *rule_file_names())


def describe_rules() -> list[tuple[str, str]]:
    """Return (name, what its layer groups are) of every built-in rule."""
    described = {
        "auto": "the rule set of this list whose family of models the names show best, otherwise layer",
        "layer": "the paper's layer: a convolution or linear layer with its bias and normalisation, with statistics",
        "segments:N": "N contiguous runs of tensors, in natural order of their names",
    }
    return [(name, described.get(name) or _built_in(name).description) for name in rule_names()]


def compared_files(rule: str) -> Collection[str]:
    """Return the JSON files that a rule compares beside the configuration. Raises RuleError for a rule set that is
    unknown or malformed.
    """
    is_rule_set = rule not in ("auto", "layer") and rule.partition(":")[0] != "segments"
    return load_rule_set(rule).require_equal.keys() if is_rule_set else ()


def group_tensors(rule: str, shapes: Shapes, layers: Mapping[str, str] | None = None) -> tuple[LayerGroup, ...]:
    """Return the layer groups of tensors under a rule, in the order of the tensors.

    `layers` (tensor name -> layer name) is the grouping that the trainer writes; only `layer` uses it, and `auto`
    for all but language models.
    Raises RuleError for an unknown or malformed rule, and for tensors that no rule matches.
    """
    return apply_rule(rule, shapes, layers).groups


def apply_rule(rule: str, shapes: Shapes, layers: Mapping[str, str] | None = None) -> Grouping:
    """Group tensors under a rule and say how the groups were found; see `group_tensors`."""
    better = _better_rule(shapes) if rule in ("auto", "layer") else None
    uses_trainers = rule == "layer" or (rule == "auto" and better is None)
    if layers is not None and shapes.keys() <= layers.keys() and uses_trainers:  # they are known: no need to warn
        grouping = Grouping("layer", "as the trainer wrote it into the file's metadata", collect(layers, shapes))
    else:
        grouping = _by_rule(rule, shapes, better)
        grouping = replace(grouping, warnings=tuple(_warnings(grouping, shapes)))
    if rule == "layer" and better:
        advice = (
            "these look like language models, whose projections the rule layer moves one by one; use --rule auto, "
            f"which picks the rule {better.name} for them"
        )
        grouping = replace(grouping, warnings=(*grouping.warnings, advice))
    return grouping


def _better_rule(shapes: Shapes) -> RuleSet | None:
    """Return the rule that suits a language model better than `layer`; None for any other model."""
    return _detect(shapes) if any(_EMBEDDING.fullmatch(name) for name in shapes) else None


def _by_rule(rule: str, shapes: Shapes, detected: RuleSet | None = None) -> Grouping:
    if rule == "auto":
        detected = detected or _detect(shapes)
        if detected is None:
            return _layer(shapes)
        found = f"picked by the names: {detected.description}"
        return Grouping(detected.name, found, _match(detected, shapes), detected.require_equal)
    if rule == "layer":
        return _layer(shapes)
    if rule.partition(":")[0] == "segments":
        return _segments(rule, shapes)
    rule_set = load_rule_set(rule)
    return Grouping(
        rule, rule_set.description or f"by the rules of {rule}", _match(rule_set, shapes), rule_set.require_equal
    )


def _warnings(grouping: Grouping, shapes: Shapes) -> Iterator[str]:
    torn = statistics_without_layer(shapes, grouping.groups)
    if torn:
        what = "normalisation moves" if len(torn) == 1 else "normalisations move"
        yield (
            f"{len(torn)} {what} without the layer that the running statistics were measured on: {_listed(torn)}. The "
            "recombined models are likely to be poor: write a rule file that keeps them together, or try --rule block"
        )
    if apart := factors_apart(grouping.groups):
        what = "1 module moves" if len(apart) == 1 else f"{len(apart)} modules move"
        yield (
            f"the factors of {what} apart: {_listed(apart)}. Each recombined model would multiply factors of different "
            "adapters, whose product no adapter was trained for: use --rule lora"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shortened, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def load_rule_set(rule: str) -> RuleSet:
    """Return a built-in rule set by its name, or the rule file of that path."""
    from fedmr_merge.layers.rule_language import read_rule_file

    if rule.endswith((".yaml", ".yml")) or "/" in rule:
        return read_rule_file(Path(rule))
    if rule not in rule_names():
        raise RuleError(
            f"unknown layer rule {shortened(rule)}; the built-in ones are {', '.join(rule_names())}",
            hint="a rule file is named by its path, which ends in .yaml",
        )
    return _built_in(rule)


@cache
def _built_in(name: str) -> RuleSet:
    from fedmr_merge.layers.rule_language import parse_rules

    return parse_rules(read_built_in(name), f"rulesets/{name}.yaml", name)


def _detect(shapes: Shapes) -> RuleSet | None:
    """Return the rule set with the most `detect` patterns of those whose patterns are all found among the names."""
    rule_sets = [_built_in(name) for name in rule_file_names()]
    by_patterns = sorted(rule_sets, key=lambda rule_set: -len(rule_set.detect))
    return next((rule_set for rule_set in by_patterns if rule_set.detects(list(shapes))), None)


def _layer(shapes: Shapes) -> Grouping:
    layer_of, joined = layers_from_names(shapes)
    found = (
        f"paired by names and shapes: {joined} normalisation{'s' if joined > 1 else ''} in the group of a layer"
        if joined
        else "by module: no normalisation pairs with a layer"
    )
    return Grouping("layer", found, collect(layer_of, shapes))


def _segments(rule: str, shapes: Shapes) -> Grouping:
    """Return N contiguous runs of tensors, in natural order of their names, as even in number as can be."""
    count = rule.removeprefix("segments:")
    if not count.isdecimal() or not 1 <= int(count) <= len(shapes):
        raise RuleError(
            f"layer rule {shortened(rule)}: N of segments:N is a number from 1 to the number of tensors, {len(shapes)}",
            hint=f"write for example segments:{min(4, len(shapes))}",
        )
    names = sorted(shapes, key=natural_order)
    runs = {name: f"segment.{position * int(count) // len(names)}" for position, name in enumerate(names)}
    return Grouping(rule, f"{count} contiguous runs of {len(names)} tensors", collect(runs, names))


def _match(rule_set: RuleSet, shapes: Shapes) -> tuple[LayerGroup, ...]:
    group_of: dict[str, str] = {}
    pinned: set[str] = set()
    unmatched = list(shapes)
    for rule in rule_set.rules:
        groups = list(zip(unmatched, rule.groups_of(unmatched), strict=True))
        taken = {name: group for name, group in groups if group is not None}
        group_of |= taken
        if rule.pinned:
            pinned |= set(taken.values())
        unmatched = [name for name, group in groups if group is None]
    if unmatched and rule_set.otherwise:
        rest = _by_rule(rule_set.otherwise, {name: shapes[name] for name in unmatched})
        group_of |= rest.group_of
    elif unmatched:
        more = f" and {len(unmatched) - 5} more" if len(unmatched) > 5 else ""
        raise RuleError(
            f"layer rule {rule_set.name!r}: no rule matches {', '.join(map(shortened, unmatched[:5]))}{more}",
            hint='add a rule for them; `{match: "**", group: rest}` at the end takes the others',
            tensors=unmatched,
        )
    return collect(group_of, shapes, pinned, rule_set.ties)
