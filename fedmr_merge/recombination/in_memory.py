"""Execute a recombination plan in memory: over stacked tensors, or over anything that stands for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from fedmr_merge.errors import PlanError
from fedmr_merge.layers.plan import LayerGroup, RecombinationPlan


class Stacked(Protocol):
    """A tensor or array [K, ...]: row i belongs to slot i."""

    def __getitem__(self, rows: Any, /) -> Any: ...


StackedT = TypeVar("StackedT", bound=Stacked)
HandleT = TypeVar("HandleT")


def recombine_stacked(
    plan: RecombinationPlan,
    groups: Sequence[LayerGroup],
    stacked: Mapping[str, StackedT],
    *,
    rows: Iterable[Any] | None = None,
) -> dict[str, StackedT]:
    """Recombine K models held as stacked tensors [K, ...], and leave the inputs as they are.

    Row i of the result is the model of slot i. `rows` holds the plan's permutations in the order of the groups, where
    something else than lists is to index the tensors. Raises PlanError when the plan is not one for these groups.
    """
    plan.check(groups, plan.slots)
    indices = [list(plan.permutations[group.name]) for group in groups] if rows is None else rows
    pairs = zip(groups, indices, strict=True)
    return {name: stacked[name][index] for group, index in pairs for name in group.tensors}


def recombine_handles(
    plan: RecombinationPlan, groups: Sequence[LayerGroup], models: Sequence[Mapping[str, HandleT]]
) -> list[dict[str, HandleT]]:
    """Recombine K models whose tensors are handles, anything that stands for a tensor, and leave them as they are.

    Model i of the result holds, for every tensor name, the handle of the slot that the plan names as its source; no
    tensor is read or copied. Raises PlanError when the plan is not one for these groups and this number of models.
    """
    plan.check(groups, len(models))
    for slot, model in enumerate(models):
        for name in (name for group in groups for name in group.tensors if name not in model):
            raise PlanError(
                f"slot {slot} lacks the tensor {name!r}",
                hint="every model needs the same tensors",
                slot=slot,
                tensor=name,
            )
    return [
        {name: models[plan.source(group.name, slot)][name] for group in groups for name in group.tensors}
        for slot in range(plan.slots)
    ]
