"""The recombination plan: for every layer group, which slot's copy goes to which slot.

Federated averaging makes one model of K trained ones by their mean, which belongs to none of them. FedMR makes K new
models instead. It takes the K models apart into layer groups (a convolution with its normalisation, say), and deals
the K copies of each group to the K slots anew, each group by a permutation of its own:

              conv1   layer1   fc                         conv1   layer1   fc
    slot 0     a       a       a                slot 0     b       a       c
    slot 1     b       b       b       ->       slot 1     c       b       a
    slot 2     c       c       c                slot 2     a       c       b

    permutations = {"conv1": (1, 2, 0), "layer1": (0, 1, 2), "fc": (2, 0, 1)}
    permutations[group][destination slot] == source slot

No copy is lost and none is doubled, so that the mean over the slots is what it was, and the inverse plan restores the
models. Training continues from the K new models; after the last round their mean is the global model.

A plan is drawn once, from (seed, round, group name) alone. It is executed over files (bytes are copied), over stacked
tensors (an index for each group) and over client replies, with the same result.

Example:
    >>> groups = [LayerGroup("conv", ("conv.weight", "conv.bias")), LayerGroup("fc", ("fc.weight",))]
    >>> plan = draw_plan(groups, slots=3, seed=0, round=1)
    >>> sorted(plan.permutations["conv"])
    [0, 1, 2]
    >>> models = [{"conv": "conv of 0"}, {"conv": "conv of 1"}, {"conv": "conv of 2"}]
    >>> recombined = [models[plan.source("conv", slot)] for slot in range(3)]
    >>> back = [recombined[plan.inverse().source("conv", slot)] for slot in range(3)]
    >>> back == models
    True

Source: Hu et al., "FedMR: Federated Learning via Model Recombination", 2022 (arXiv 2208.07677), algorithm 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmr_merge.checkpoint.json_reader import named_once
from fedmr_merge.errors import PlanError, shown
from fedmr_merge.plain_values import number, whole
from fedmr_merge.seeds import permutation, random_words

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """A set of tensors that move together: the paper's layer."""

    name: str
    tensors: tuple[str, ...]
    pinned: bool = False  #: stays in its slot, whatever the seed


@dataclass(frozen=True)
class RecombinationPlan:
    """A permutation of the K slots for every layer group: `permutations[group][destination] = source`.

    Every (group, slot) is used once and only once: no layer of any model is lost or doubled.

    Raises:
        PlanError: for fewer than two slots, or for a list of slots that is not a permutation of them.
    """

    slots: int
    permutations: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", whole(self.slots, "slots"))
        if self.slots < 2:
            raise PlanError(f"a plan needs at least 2 slots, found {self.slots}", hint="name two or more models")
        for group, sources in self.permutations.items():
            if len(sources) != self.slots or sorted(sources) != list(range(self.slots)):
                raise PlanError(
                    f"group {group!r}: {list(sources)} is not a permutation of the slots 0 to {self.slots - 1}",
                    hint="every slot must be the source of exactly one slot",
                    group=group,
                )
        given = {
            group: tuple(whole(source, f"group {group!r}: a slot") for source in sources)
            for group, sources in self.permutations.items()
            if {*map(type, sources)} != {int}
        }
        if given:
            object.__setattr__(self, "permutations", {**self.permutations, **given})

    def source(self, group: str, destination: int) -> int:
        """Return the slot whose copy of the group goes to `destination`."""
        return self.permutations[group][destination]

    @property
    def moved(self) -> int:
        """Return how many (group, slot) pairs change their slot."""
        return sum(source != slot for sources in self.permutations.values() for slot, source in enumerate(sources))

    def inverse(self) -> RecombinationPlan:
        """Return the plan that undoes this one."""
        return RecombinationPlan(self.slots, {group: _inverse(p) for group, p in self.permutations.items()})

    def compose(self, then: RecombinationPlan) -> RecombinationPlan:
        """Return the one plan that does what this plan and then `then` do.

        Raises PlanError when the two have different slots or groups.
        """
        if self.slots != then.slots or self.permutations.keys() != then.permutations.keys():
            raise PlanError("only plans with the same slots and layer groups can follow each other")
        seen: dict[tuple[int, ...], tuple[int, ...]] = {}  # as in `draw_plan`
        permutations: dict[str, tuple[int, ...]] = {}
        for group, first in self.permutations.items():
            composed = tuple(first[source] for source in then.permutations[group])
            permutations[group] = seen.setdefault(composed, composed)
        return RecombinationPlan(self.slots, permutations)

    def check(self, groups: Sequence[LayerGroup], slots: int) -> None:
        """Check that this plan fits these groups and this number of models; raise PlanError where it does not."""
        if self.slots != slots:
            raise PlanError(
                f"the plan has {self.slots} slots, there are {slots} models", hint="name one model for every slot"
            )
        names = {group.name for group in groups}
        for missing in names - self.permutations.keys():
            raise PlanError(
                f"the plan lacks the layer group {missing!r}", hint="draw it with the same layer rule", group=missing
            )
        for unknown in self.permutations.keys() - names:
            raise PlanError(
                f"the plan has a layer group {unknown!r}, which the models do not have",
                hint="use the same layer rule",
                group=unknown,
            )
        for group in groups:
            if group.pinned and self.permutations[group.name] != tuple(range(self.slots)):
                raise PlanError(
                    f"the plan moves the layer group {group.name!r}, which is pinned",
                    hint="leave out the pin, or use a plan that keeps the group in its slots",
                    group=group.name,
                )

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a value that `json.dumps` takes and `from_json` reads."""
        return {
            "format_version": FORMAT_VERSION,
            "slots": self.slots,
            "permutations": {group: list(sources) for group, sources in self.permutations.items()},
        }

    @classmethod
    def from_json(cls, content: Any) -> RecombinationPlan:
        """Read a plan that `to_json` gave, parsed or as a string. Raises PlanError when it is not a plan."""
        if isinstance(content, str):
            try:
                content = json.loads(content, object_pairs_hook=named_once)
            except (ValueError, RecursionError) as error:
                raise PlanError(f"the plan is not valid JSON: {error}") from error
        if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
            raise PlanError(f"not a recombination plan of format version {FORMAT_VERSION}")
        slots, permutations = content.get("slots"), content.get("permutations")
        if type(slots) is not int or not isinstance(permutations, dict):
            raise PlanError("a plan needs `slots`, a number, and `permutations`, a list of slots for every layer group")
        for group, sources in permutations.items():
            if not isinstance(sources, list) or not all(type(source) is int for source in sources):
                raise PlanError(
                    f"group {group!r}: its permutation must be a list of slots, found {shown(repr(sources), 80)}",
                    group=group,
                )
        seen: dict[tuple[int, ...], tuple[int, ...]] = {}  # as in `draw_plan`
        shared = ((sys.intern(group), tuple(sources)) for group, sources in permutations.items())
        return cls(slots, {group: seen.setdefault(sources, sources) for group, sources in shared})


def draw_plan(
    groups: Sequence[LayerGroup], slots: int, *, seed: int, round: int, probability: float = 1.0
) -> RecombinationPlan:
    """Draw the plan of a round: for every group a uniform permutation of the slots.

    A group's draw depends on (seed, round, group name) alone: another group, another number of threads or another
    executor changes no draw.

    Args:
        groups: the layer groups; each has a name of its own.
        slots: the number of models, K, 2 or more.
        seed: any integer; the same one gives the same plan.
        round: the number of the round; each round draws anew.
        probability: that of shuffling each group; otherwise it stays in its slot. Pinned groups always stay.

    Returns:
        The plan, with one permutation for each group.

    Raises:
        PlanError: for fewer than two slots, for a probability outside [0, 1], or for a seed or a round that is not a
            whole number.

    Examples:
        >>> from fedmr_merge import LayerGroup, draw_plan
        >>> draw_plan([LayerGroup("fc", ("fc.weight",), pinned=True)], 2, seed=0, round=1).permutations
        {'fc': (0, 1)}
    """
    slots, seed, round = whole(slots, "slots"), whole(seed, "seed"), whole(round, "round")
    probability = number(probability, "probability")
    if not 0 <= probability <= 1:
        raise PlanError(
            f"probability must lie between 0 and 1, found {probability}",
            hint="0.5 shuffles about half of the layer groups, and 1 all of them",
        )
    stays = tuple(range(max(slots, 0)))
    seen: dict[tuple[int, ...], tuple[int, ...]] = {}  # groups are many, different permutations of a few slots are not
    permutations: dict[str, tuple[int, ...]] = {}
    for group in groups:
        words = random_words(seed, "recombination", round, group.name)
        shuffled = next(words) < probability * (1 << 64)
        drawn = permutation(slots, words) if shuffled and not group.pinned else stays
        permutations[group.name] = seen.setdefault(drawn, drawn)
    return RecombinationPlan(slots, permutations)


def _inverse(sources: Sequence[int]) -> tuple[int, ...]:
    inverse = [0] * len(sources)
    for destination, source in enumerate(sources):
        inverse[source] = destination
    return tuple(inverse)
