"""Look into a checkpoint: its tensors, and the layer groups that a rule makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.errors import CheckpointError, shown
from fedmr_merge.hub.inputs import open_inputs
from fedmr_merge.layers.plan import LayerGroup
from fedmr_merge.layers.rules import Grouping
from fedmr_merge.recombination.grouping import group_checkpoints


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found."""

    checkpoint: Checkpoint
    grouping: Grouping

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """The layer groups: every tensor is in exactly one of them."""
        return tuple(self.grouping.groups)


def inspect(checkpoint: str | Path | Checkpoint, rule: str = "layer") -> Inspection:
    """Return the tensors of a checkpoint and its layer groups, from its headers alone.

    Args:
        checkpoint: a safetensors file, a model folder, or a Hub id `org/name[@revision][/subfolder]`, whose weights
            are not fetched.
        rule: the layer rule that makes the groups: `layer`, `module`, `tensor`, `block`, `segments:N`, `model`,
            `auto` … or the path of a rule file.

    Returns:
        An Inspection with `checkpoint` (its `tensors` map names to dtype, shape and place; `parameters` and `nbytes`
        are counts of numbers and of bytes) and `groups`.

    Raises:
        CheckpointError: the checkpoint cannot be read, or the argument names several models.
        HubError: the Hub refused, or could not be reached.
        RuleError: there is no such rule, or it leaves a tensor without a group.

    Examples:
        >>> from fedmr_merge import inspect
        >>> found = inspect("a.safetensors")
        >>> [group.name for group in found.groups]
        ['conv1', 'fc']
        >>> found.checkpoint.parameters
        44
    """
    opened = open_inputs([checkpoint], headers_only=True)
    if len(opened) > 1:
        raise CheckpointError(
            shown(checkpoint), f"names {len(opened)} models", hint="name one of them, e.g. with its subfolder"
        )
    return Inspection(opened[0], group_checkpoints(opened, rule))
