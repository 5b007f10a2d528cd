"""A plan over stacked tensors is the plan over handles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmr_merge.errors import PlanError
from fedmr_merge.layers.plan import LayerGroup, RecombinationPlan, draw_plan
from fedmr_merge.recombination.in_memory import recombine_handles, recombine_stacked

GROUPS = st.lists(st.integers(1, 3), min_size=1, max_size=6).map(
    lambda sizes: [LayerGroup(f"g{i}", tuple(f"g{i}.{j}" for j in range(size))) for i, size in enumerate(sizes)]
)


@given(GROUPS, st.integers(2, 6), st.integers(0, 99), st.floats(0, 1))
def test_handles_move_as_the_rows_of_stacked_tensors(
    groups: list[LayerGroup], slots: int, seed: int, probability: float
) -> None:
    plan = draw_plan(groups, slots, seed=seed, round=1, probability=probability)
    names = [name for group in groups for name in group.tensors]
    handles = [{name: object() for name in names} for _ in range(slots)]
    before = [dict(model) for model in handles]
    stacked = {name: np.arange(slots) for name in names}
    moved, rows = recombine_handles(plan, groups, handles), recombine_stacked(plan, groups, stacked)
    assert handles == before
    assert len(moved) == slots
    for slot, model in enumerate(moved):
        assert list(model) == names
        for name in names:
            assert model[name] is handles[rows[name][slot]][name]


def test_handles_of_a_small_plan() -> None:
    groups = [LayerGroup("a", ("a.w", "a.b")), LayerGroup("c", ("c.w",))]
    plan = RecombinationPlan(2, {"a": (1, 0), "c": (0, 1)})
    models = [{"a.w": "w0", "a.b": "b0", "c.w": "c0"}, {"a.w": "w1", "a.b": "b1", "c.w": "c1"}]
    assert recombine_handles(plan, groups, models) == [
        {"a.w": "w1", "a.b": "b1", "c.w": "c0"},
        {"a.w": "w0", "a.b": "b0", "c.w": "c1"},
    ]
    with pytest.raises(PlanError, match=r"slot 1 lacks the tensor 'a\.b'"):
        recombine_handles(plan, groups, [models[0], {"a.w": "w1", "c.w": "c1"}])
    with pytest.raises(PlanError, match="the plan has 2 slots, there are 3 models"):
        recombine_handles(plan, groups, [*models, models[0]])
