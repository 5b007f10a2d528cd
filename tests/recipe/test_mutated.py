"""Mutated recipes and settings: a recipe, or faults in a bounded message; never anything else."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import RECIPE

from fedmr_merge.errors import RecipeError
from fedmr_merge.recipe.schema import parse_recipe
from fedmr_merge.recipe.text import apply_setting, parse_yaml

LINES = parse_recipe(RECIPE, "small.yaml").to_yaml().splitlines()
VALUES = st.sampled_from(
    [
        *("2026-02-30", "0x_", "9" * 5000, "!!int x", "&a [*a]", "*a", "~", "[]", "{}", "{1: 2}", "{2026-01-01: 1}"),
        *("-1", "0", "0.5", ".nan", "-.inf", "true", "x" * 9999, "[[[[]]]]", "'\\0'", '"\\0"', "{? [1] : 2}", "1e308"),
    ]
)
PATHS = [
    *("name", "seed", "data", "data.name", "data.partition", "data.partition.alpha", "data.partition.clients", "model"),
    *("model.init", "training.lr", "training.privacy", "training.privacy.clip", "training.device", "stages", "x.y.z"),
    *("stages[0]", "stages[1].fedmr.rounds", "stages[1].fedmr.rule", "stages[2].publish.repo", "stages[9999999999]"),
    *("stages[²].x", "", "[", "training[0]", "stages.until", "stages[1].fedmr.until"),
]


def check(text: str, *changes: str) -> None:
    try:
        raw = parse_yaml(text, "mutated.yaml")
        for change in changes:
            apply_setting(raw, change)
        recipe = parse_recipe(raw, "mutated.yaml")
    except RecipeError as error:
        assert len(str(error)) < 5000  # noqa: PT017 - most mutations are faults, some are not
        return
    again = parse_recipe(parse_yaml(recipe.to_yaml(), "resolved"), "resolved")
    assert again.to_yaml() == recipe.to_yaml()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(LINES) - 1), VALUES)
def test_another_value(number: int, value: str) -> None:
    key = LINES[number].partition(":")[0]
    check("\n".join([*LINES[:number], f"{key}: {value}", *LINES[number + 1 :]]))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PATHS), VALUES)
def test_another_setting(path: str, value: str) -> None:
    check("\n".join(LINES), f"{path}={value}")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_text_that_is_cut_or_doubled(data: st.DataObject) -> None:
    text = "\n".join(LINES)
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    check(text[:start] + text[end:] if data.draw(st.booleans()) else text[:end] + text[start:])


def test_a_thousand_unknown_keys_are_ten_and_a_number() -> None:
    raw = yaml.safe_load("\n".join(LINES)) | {f"key{number}": 1 for number in range(1000)}
    with pytest.raises(RecipeError, match=r"and 990 more$") as caught:
        parse_recipe(raw, "small.yaml")
    assert len(caught.value.faults) == 1000
    assert len(str(caught.value)) < 2000
