"""Layer groups: made of names, joined by ties, pinned by patterns."""

from __future__ import annotations

import pytest

from fedmr_merge.errors import RuleError
from fedmr_merge.layers.groups import collect, pin_groups, tie_groups
from fedmr_merge.layers.plan import LayerGroup


def test_groups_are_in_the_order_of_their_first_tensors() -> None:
    group_of = {"b.w": "b", "a.w": "a", "b.b": "b", "c.w": "c"}
    assert collect(group_of, list(group_of), pinned=["c"]) == (
        LayerGroup("b", ("b.w", "b.b")),
        LayerGroup("a", ("a.w",)),
        LayerGroup("c", ("c.w",), pinned=True),
    )
    assert collect(group_of, list(group_of), ties=[("c.w", "b.b")]) == (
        LayerGroup("b", ("b.w", "b.b", "c.w")),
        LayerGroup("a", ("a.w",)),
    )


def test_ties_join_groups_and_pins_spread() -> None:
    groups = [LayerGroup("a", ("a.w",)), LayerGroup("b", ("b.w", "b.b"), pinned=True), LayerGroup("c", ("c.w",))]
    assert tie_groups(groups, [("c.w", "b.b")]) == (groups[0], LayerGroup("b", ("b.w", "b.b", "c.w"), pinned=True))
    assert tie_groups(groups, [("a.w", "b.w"), ("b.w", "c.w")]) == (
        LayerGroup("a", ("a.w", "b.w", "b.b", "c.w"), pinned=True),
    )
    assert tie_groups(groups, [("x", "y"), ("a.w", "x")]) == tuple(groups)


def test_pins() -> None:
    groups = (LayerGroup("a", ("a.weight", "a.bias")), LayerGroup("b.c", ("b.c.weight",)))
    assert [g.pinned for g in pin_groups(groups, ["b.**"])] == [False, True]
    assert [g.pinned for g in pin_groups(groups, ["*.bias", "re:b.*"])] == [True, True]
    assert pin_groups(groups, []) == groups
    with pytest.raises(RuleError, match="--pin 'x': matches no tensor"):
        pin_groups(groups, ["x"])
    with pytest.raises(RuleError, match="malformed"):
        pin_groups(groups, ["{"])
