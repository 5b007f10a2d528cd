"""Check a rule file against the models that it is meant for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.layers.modules import Shapes
from fedmr_merge.layers.patterns import shortened
from fedmr_merge.layers.rule_language import Rule, read_rule_file

if TYPE_CHECKING:
    from fedmr_merge.checkpoint.open import Checkpoint


def check_rule_file(path: Path, shapes: Shapes) -> list[str]:
    """Return what is wrong with a rule file for these tensors: unmatched or ambiguous ones, rules that take nothing,
    ties of tensors that are not there.

    Ambiguous is a tensor that two rules put into different groups. A rule that matches everything is a fallback and
    may follow any other.
    """
    rule_set = read_rule_file(path)
    faults: list[str] = []
    used: set[Rule] = set()
    groups = [rule.groups_of(list(shapes)) for rule in rule_set.rules]
    for place, name in enumerate(shapes):
        given = ((rule, found[place]) for rule, found in zip(rule_set.rules, groups, strict=True))
        matches = [(rule, group) for rule, group in given if group is not None]
        if not matches:
            if rule_set.otherwise is None:
                faults.append(f"{shortened(name)} matches no rule")
            continue
        used.add(matches[0][0])
        first, group = matches[0]
        for rule, other in matches[1:]:
            if not rule.is_fallback and other != group:
                faults.append(
                    f"{shortened(name)} is ambiguous: line {first.line} says {shortened(group)}, "
                    f"line {rule.line} says {shortened(other)}"
                )
    faults += [
        f"line {r.line}: the rule {shortened(r.pattern.text)} takes no tensor" for r in rule_set.rules if r not in used
    ]
    tied = dict.fromkeys(name for tie in rule_set.ties for name in tie)
    faults += [
        f"line {rule_set.lines['ties', name]}: ties: there is no tensor {shortened(name)}"
        for name in tied
        if name not in shapes
    ]
    return faults


def check_require_equal(path: Path, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return which files and keys of a rule file's `require_equal` none of the checkpoints has.

    Raises CheckpointError for such a file that is not JSON.
    """
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
