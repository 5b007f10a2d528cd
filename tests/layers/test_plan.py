"""The plan: nothing lost, nothing doubled, every draw by itself."""

from __future__ import annotations

import json
from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmr_merge.errors import PlanError
from fedmr_merge.layers.plan import LayerGroup, RecombinationPlan, draw_plan
from fedmr_merge.recombination.in_memory import recombine_stacked

NAMES = st.lists(st.text(max_size=4), min_size=1, max_size=6, unique=True)
SLOTS = st.integers(2, 12)
SEEDS = st.integers(0, 2**70)


def groups(names: list[str], pinned: frozenset[str] = frozenset()) -> list[LayerGroup]:
    return [LayerGroup(name, (f"{name}.weight", f"{name}.bias"), name in pinned) for name in names]


@given(NAMES, SLOTS, SEEDS, st.integers(0, 1000), st.floats(0, 1))
def test_every_group_and_slot_is_used_once(names: list[str], slots: int, seed: int, round: int, p: float) -> None:
    plan = draw_plan(groups(names), slots, seed=seed, round=round, probability=p)
    for name in names:
        assert sorted(plan.source(name, slot) for slot in range(slots)) == list(range(slots))


def test_numbers_of_numpy_are_pythons_own() -> None:
    plain = draw_plan(groups(["a", "b"]), 5, seed=3, round=1, probability=0.5)
    drawn = draw_plan(groups(["a", "b"]), np.int64(5), seed=np.uint8(3), round=np.int64(1), probability=np.float32(0.5))
    made = RecombinationPlan(np.int64(5), {name: np.array(sources) for name, sources in plain.permutations.items()})  # type: ignore[misc,arg-type]
    for plan in (drawn, made):
        assert plan == plain
        assert json.dumps(plan.to_json()) == json.dumps(plain.to_json())
    for numbers in ({"seed": 1.7, "round": 1}, {"seed": 1, "round": "1"}):
        with pytest.raises(PlanError, match="must be a whole number, found "):
            draw_plan(groups(["a"]), 3, **numbers)  # type: ignore[arg-type]


@given(NAMES, SLOTS, SEEDS)
def test_inverse_restores(names: list[str], slots: int, seed: int) -> None:
    plan = draw_plan(groups(names), slots, seed=seed, round=1)
    stays = {name: tuple(range(slots)) for name in names}
    assert plan.compose(plan.inverse()).permutations == stays
    assert plan.inverse().compose(plan).permutations == stays
    assert plan.inverse().inverse() == plan


@given(NAMES, SLOTS, SEEDS, SEEDS)
def test_compose_does_one_after_the_other(names: list[str], slots: int, one: int, two: int) -> None:
    first, then = (draw_plan(groups(names), slots, seed=seed, round=1) for seed in (one, two))
    cohort = {t: np.arange(slots) for group in groups(names) for t in group.tensors}
    after = recombine_stacked(then, groups(names), recombine_stacked(first, groups(names), cohort))
    at_once = recombine_stacked(first.compose(then), groups(names), cohort)
    assert all((after[name] == at_once[name]).all() for name in cohort)


@given(NAMES, SLOTS, SEEDS, st.integers(1, 5))
def test_another_group_or_order_changes_no_draw(names: list[str], slots: int, seed: int, round: int) -> None:
    whole = draw_plan(groups(names), slots, seed=seed, round=round)
    for name in names:
        assert draw_plan(groups([name]), slots, seed=seed, round=round).permutations[name] == whole.permutations[name]
    assert draw_plan(groups(names[::-1]), slots, seed=seed, round=round).permutations == whole.permutations


@given(NAMES, SLOTS, SEEDS)
def test_pinned_groups_and_probability_zero_stay(names: list[str], slots: int, seed: int) -> None:
    stays = tuple(range(slots))
    free = draw_plan(groups(names), slots, seed=seed, round=1)
    pinned = draw_plan(groups(names, frozenset(names[:1])), slots, seed=seed, round=1)
    assert pinned.permutations == free.permutations | {names[0]: stays}
    assert set(draw_plan(groups(names), slots, seed=seed, round=1, probability=0).permutations.values()) == {stays}


@given(NAMES, SLOTS, SEEDS, st.floats(0, 1))
def test_probability_changes_whether_a_group_is_shuffled_and_not_how(
    names: list[str], slots: int, seed: int, p: float
) -> None:
    whole, some = (draw_plan(groups(names), slots, seed=seed, round=1, probability=q) for q in (1.0, p))
    assert all(some.permutations[n] in (whole.permutations[n], tuple(range(slots))) for n in names)


def test_probability_is_that_of_a_shuffle() -> None:
    many = groups([str(i) for i in range(4000)])
    plan = draw_plan(many, 50, seed=0, round=1, probability=0.25)
    shuffled = sum(sources != tuple(range(50)) for sources in plan.permutations.values())
    assert abs(shuffled / 4000 - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_all_permutations_are_alike_probable() -> None:
    count = Counter(draw_plan(groups(["a"]), 4, seed=seed, round=1).permutations["a"] for seed in range(4800))
    assert set(count) == set(permutations(range(4)))
    chi_squared = sum((found - 200) ** 2 / 200 for found in count.values())
    assert chi_squared < 49.7  # the 99.9 % quantile for 23 degrees of freedom


PINNED: dict[str, tuple[int, ...]] = {"conv1": (0, 3, 2, 4, 1), "fc": (1, 0, 4, 3, 2), "": (2, 3, 4, 1, 0)}
PINNED_TWO: tuple[int, ...] = (1, 0)


def test_draws_never_change_across_versions() -> None:
    found = draw_plan(groups(["conv1", "fc", ""]), 5, seed=7, round=3)
    assert found.permutations == PINNED
    assert draw_plan(groups(["conv1"]), 2, seed=0, round=1).permutations == {"conv1": PINNED_TWO}


def test_draws_are_what_the_definition_says() -> None:
    """The definition once more, in as few words as can be: Fisher-Yates on 64-bit words of a SHA-256 counter stream."""
    from hashlib import sha256

    words: list[int] = []
    for counter in range(4):
        block = sha256(b"(7, 'recombination', 3, 'conv1')" + counter.to_bytes(8, "little")).digest()
        words += [int.from_bytes(block[i : i + 8], "little") for i in range(0, 32, 8)]
    items = list(range(5))
    for last, word in zip((4, 3, 2, 1), words[1:], strict=False):  # the first word decides whether to shuffle at all
        other = word % (last + 1)
        items[last], items[other] = items[other], items[last]
    assert draw_plan(groups(["conv1"]), 5, seed=7, round=3).permutations["conv1"] == tuple(items)


@given(NAMES, SLOTS, SEEDS)
def test_json_round_trip(names: list[str], slots: int, seed: int) -> None:
    plan = draw_plan(groups(names), slots, seed=seed, round=1)
    assert RecombinationPlan.from_json(json.dumps(plan.to_json())) == plan
    assert RecombinationPlan.from_json(plan.to_json()) == plan


GOOD: dict[str, Any] = {"format_version": 1, "slots": 2, "permutations": {"a": [1, 0]}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ({**GOOD, "slots": 10**15}, "is not a permutation of the slots 0 to 999999999999999"),
        ([], "not a recombination plan"),
        ({**GOOD, "format_version": 2}, "format version 1"),
        ({**GOOD, "slots": True}, "a plan needs `slots`"),
        ({**GOOD, "slots": 1, "permutations": {"a": [0]}}, "at least 2 slots"),
        ({**GOOD, "permutations": []}, "a plan needs `slots`"),
        ({**GOOD, "permutations": {"a": [0, 0]}}, "group 'a': [0, 0] is not a permutation of the slots 0 to 1"),
        ({**GOOD, "permutations": {"a": [0, 2]}}, "not a permutation"),
        ({**GOOD, "permutations": {"a": [0]}}, "not a permutation"),
        ({**GOOD, "permutations": {"a": [0, 1.0]}}, "must be a list of slots"),
        ({**GOOD, "permutations": {"a": [False, True]}}, "must be a list of slots"),
        ({**GOOD, "permutations": {"a": None}}, "must be a list of slots"),
    ],
)
def test_malformed_plans(content: Any, words: str) -> None:
    with pytest.raises(PlanError) as caught:
        RecombinationPlan.from_json(content)
    assert words in str(caught.value)


def test_plans_that_do_not_fit() -> None:
    plan = draw_plan(groups(["a", "b"]), 3, seed=0, round=1)
    with pytest.raises(PlanError, match="3 slots, there are 2 models"):
        plan.check(groups(["a", "b"]), 2)
    with pytest.raises(PlanError, match="lacks the layer group 'c'"):
        plan.check(groups(["a", "b", "c"]), 3)
    with pytest.raises(PlanError, match="a layer group 'b', which the models do not have"):
        plan.check(groups(["a"]), 3)
    swap = RecombinationPlan(2, {"a": (1, 0), "b": (0, 1)})
    swap.check([LayerGroup("a", ("a",)), LayerGroup("b", ("b",), pinned=True)], 2)
    with pytest.raises(PlanError, match="moves the layer group 'a', which is pinned"):
        swap.check([LayerGroup("a", ("a",), pinned=True), LayerGroup("b", ("b",))], 2)
    with pytest.raises(PlanError, match="same slots"):
        plan.compose(draw_plan(groups(["a"]), 3, seed=0, round=1))


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_probability_out_of_range(p: float) -> None:
    with pytest.raises(PlanError, match="between 0 and 1"):
        draw_plan(groups(["a"]), 2, seed=0, round=1, probability=p)


@pytest.mark.parametrize("slots", [-1, 0, 1])
def test_too_few_slots(slots: int) -> None:
    with pytest.raises(PlanError, match="at least 2 slots"):
        draw_plan(groups(["a"]), slots, seed=0, round=1)


@settings(max_examples=30, deadline=None)
@given(NAMES, SLOTS, SEEDS)
def test_mean_over_the_slots_stays(names: list[str], slots: int, seed: int) -> None:
    import torch

    plan = draw_plan(groups(names), slots, seed=seed, round=1)
    generator = torch.Generator().manual_seed(seed % 2**60)
    cohort = {t: torch.randn(slots, 3, generator=generator) for group in groups(names) for t in group.tensors}
    before = {name: tensor.clone() for name, tensor in cohort.items()}
    after = recombine_stacked(plan, groups(names), cohort)
    for name, tensor in cohort.items():
        assert torch.equal(tensor, before[name])
        torch.testing.assert_close(after[name].mean(0), tensor.mean(0))
        assert torch.equal(after[name].sort(0).values, tensor.sort(0).values)
