"""Make the layer groups of opened checkpoints: a rule, what is tied in any of them, and what must not be torn apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from fedmr_merge.checkpoint.matching import match_checkpoints
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.quantisation import find_scales
from fedmr_merge.errors import RuleError
from fedmr_merge.layers.groups import tie_groups
from fedmr_merge.layers.layer_rule import trainer_layers
from fedmr_merge.layers.rules import Grouping, apply_rule
from fedmr_merge.layers.ties import find_ties


def group_checkpoints(
    checkpoints: Sequence[Checkpoint], rule: str, ignore_config: Collection[str] = (), *, ties: bool = True
) -> Grouping:
    """Return the layer groups of matching checkpoints, tied tensors together unless `ties` is false.

    Raises RuleError or LayerMismatchError.
    """
    first = checkpoints[0]
    grouping = apply_rule(rule, first.shapes, trainer_layers(first))
    if grouping.require_equal and len(checkpoints) > 1:
        match_checkpoints(checkpoints, grouping.require_equal, ignore_config)
    _refuse_torn_codes(first, grouping)
    if not ties:
        return grouping
    known, unknown = find_ties(checkpoints)
    tied = replace(grouping, groups=tie_groups(grouping.groups, known), tied=tuple(known))
    apart = (tie for tie in unknown if len({tied.group_of[name] for name in tie}) > 1)
    return replace(tied, perhaps_tied=tuple(apart)) if unknown else tied


def _refuse_torn_codes(checkpoint: Checkpoint, grouping: Grouping) -> None:
    """Raise RuleError where quantised weights would move without their scales: they would be other numbers."""
    for codes, scale in find_scales(checkpoint.tensors):
        if grouping.group_of[codes] != grouping.group_of[scale]:
            raise RuleError(
                f"{codes} holds codes whose scales are in {scale}, and the rule puts the two into different groups",
                hint="choose a rule that keeps them together, such as `module` or `model`",
                tensors=(codes, scale),
            )
