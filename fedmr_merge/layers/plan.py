"""The recombination plan: for every layer group, which slot's copy goes to which slot.

A plan is drawn once from (seed, round, group) and executed over files, over stacked tensors or over client replies,
with the same result.

    permutations[group][destination slot] == source slot
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmr_merge.checkpoint.json_reader import named_once
from fedmr_merge.errors import PlanError
from fedmr_merge.seeds import permutation, random_words

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Tensors that move together: the paper's layer."""

    name: str
    tensors: tuple[str, ...]
    pinned: bool = False  #: stays in its slot, whatever the seed


@dataclass(frozen=True)
class RecombinationPlan:
    """For every layer group a permutation of the K slots: `permutations[group][destination] = source`.

    Every (group, slot) is used once and only once, so that no layer of any model is lost or doubled and the mean over
    the slots stays what it was (Hu et al., "Step 3: model recombination").
    """

    slots: int
    permutations: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        if self.slots < 2:
            raise PlanError(f"a plan needs at least 2 slots, found {self.slots}", hint="name two or more models")
        for group, sources in self.permutations.items():
            if len(sources) != self.slots or sorted(sources) != list(range(self.slots)):
                raise PlanError(
                    f"group {group!r}: {list(sources)} is not a permutation of the slots 0 to {self.slots - 1}",
                    hint="every slot must be the source of exactly one slot",
                )

    def source(self, group: str, destination: int) -> int:
        """Return the slot whose copy of the group goes to `destination`."""
        return self.permutations[group][destination]

    @property
    def moved(self) -> int:
        """How many (group, slot) pairs change their slot."""
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
        """Raise PlanError when this plan is not one for these groups and this number of models."""
        if self.slots != slots:
            raise PlanError(
                f"the plan has {self.slots} slots, there are {slots} models", hint="name one model for every slot"
            )
        names = {group.name for group in groups}
        for missing in names - self.permutations.keys():
            raise PlanError(f"the plan lacks the layer group {missing!r}", hint="draw it with the same layer rule")
        for unknown in self.permutations.keys() - names:
            raise PlanError(
                f"the plan has a layer group {unknown!r}, the models have none", hint="use the same layer rule"
            )
        for group in groups:
            if group.pinned and self.permutations[group.name] != tuple(range(self.slots)):
                raise PlanError(
                    f"the plan moves the layer group {group.name!r}, which is pinned",
                    hint="leave out the pin, or use a plan that keeps the group in its slots",
                )

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "slots": self.slots,
            "permutations": {group: list(sources) for group, sources in self.permutations.items()},
        }

    @classmethod
    def from_json(cls, content: Any) -> RecombinationPlan:
        """Read what `to_json` gave (parsed, or as text). Raises PlanError when it is not a plan."""
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
                raise PlanError(f"group {group!r}: its permutation must be a list of slots, found {sources!r}")
        return cls(slots, {group: tuple(sources) for group, sources in permutations.items()})


def draw_plan(
    groups: Sequence[LayerGroup], slots: int, *, seed: int, round: int, probability: float = 1.0
) -> RecombinationPlan:
    """Draw the plan of a round: for every group a uniform permutation of the slots.

    A group's draw depends on (seed, round, group name) alone, so that adding a group, changing the number of threads
    or the executor changes no other draw. With `probability` p a group is shuffled with probability p and else stays;
    pinned groups always stay.

    Raises PlanError for fewer than two slots or a probability outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise PlanError(
            f"probability must lie between 0 and 1, found {probability}",
            hint="0.5 shuffles about half of the layer groups, 1 all of them",
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
