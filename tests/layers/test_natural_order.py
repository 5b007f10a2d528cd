"""Names are sorted as people count."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedmr_merge.layers.natural_order import natural_order


def test_numbers_are_compared_as_numbers_and_the_rest_as_text() -> None:
    names = ["layer10", "layer2", "layer1.9", "layer1.10", "layer", "head"]
    assert sorted(names, key=natural_order) == ["head", "layer", "layer1.9", "layer1.10", "layer2", "layer10"]


@given(st.lists(st.integers(0, 10**30), unique=True))
def test_it_is_the_order_of_the_integers(numbers: list[int]) -> None:
    assert sorted(map(str, numbers), key=natural_order) == [str(number) for number in sorted(numbers)]


def test_a_number_may_have_thousands_of_digits() -> None:
    assert natural_order("9" * 5000) < natural_order("1" + "0" * 5000)
