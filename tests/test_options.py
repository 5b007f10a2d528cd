"""Options of dataclasses: checked, converted, every fault with its path."""

from dataclasses import dataclass
from datetime import date
from typing import Annotated, Literal

import pytest
from annotated_types import Gt

from fedmr_merge.options import Faults, check_options, mapping, show_value


@dataclass(frozen=True)
class Inner:
    clip: Annotated[float, Gt(0)]
    delta: float = 1e-5


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner | None = None


def check(raw: dict[str, object]) -> tuple[dict[str, object], list[str]]:
    faults = Faults()
    return check_options(Outer, raw, "here", faults), [str(fault) for fault in faults]


def test_values_and_defaults() -> None:
    assert check({"sizes": [3], "inner": {"clip": 1}})[0] == {"kind": "a", "sizes": (3,), "inner": Inner(1.0, 1e-5)}
    assert check({}) == ({"kind": "a", "sizes": (1, 2), "inner": None}, [])


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ({"kid": "a"}, "here.kid: unknown option, did you mean kind?"),
        ({"kind": "c"}, "here.kind: should be 'a' or 'b', found \"c\""),
        ({"sizes": "12"}, 'here.sizes: should be a valid array, found "12"'),
        ({"sizes": [1, "2"]}, 'here.sizes[1]: should be a valid integer, found "2"'),
        ({"inner": {"clip": 0}}, "here.inner.clip: should be greater than 0, found 0"),
        ({"inner": {"clip": 1, "extra": 2}}, "here.inner.extra: unknown option"),
        ({"inner": {}}, "here.inner.clip: is missing"),
    ],
)
def test_faults(raw: dict[str, object], fault: str) -> None:
    assert check(raw) == ({}, [fault])


def test_a_mapping_or_nothing() -> None:
    faults = Faults()
    assert mapping(None, "x", faults) == {}
    assert not faults
    assert mapping([1], "x", faults) == {}
    assert [str(fault) for fault in faults] == ["x: expected a mapping of options, found [1]"]


def test_a_name_that_is_near_nothing_gets_the_list() -> None:
    faults = Faults()
    faults.unknown("stages[0].feddyn", "feddyn", ("fedgen", "fedavg", "fedmr"), "stage")
    faults.unknown("stages[0].fedpox", "fedpox", ("fedgen", "fedavg", "fedprox"), "stage")
    assert [fault.message for fault in faults] == [
        "unknown stage, known are fedavg, fedgen, fedmr",
        "unknown stage, did you mean fedprox?",
    ]


def itself() -> list[object]:
    found: list[object] = []
    found.append(found)
    return found


def nested(times: int) -> list[object]:
    """A list that takes no memory and whose text would take 2 ** times times as much."""
    found: list[object] = ["x" * 10]
    for _ in range(times):
        found = [found, found]
    return found


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (itself(), "holds a value that is not plain data"),
        ({date(2026, 2, 3): 1}, "holds a value that is not plain data"),
        (10**5000, "holds a value that is not plain data"),
        ("x" * 10**6, 'found "xxxx'),
        ([list(range(10**4))], "found [0, 1, 2, 3, "),
    ],
    ids=["within itself", "date as a key", "5,001 digits", "a million characters", "ten thousand numbers"],
)
def test_values_that_are_no_options_are_faults_of_one_short_line(value: object, words: str) -> None:
    found, faults = check({"sizes": value})
    assert found == {}
    assert words in faults[0]
    assert all(len(fault) < 200 for fault in faults)


def test_a_value_that_would_fill_memory_is_shown_by_its_beginning() -> None:
    assert show_value(nested(60)).startswith("[[[[[[")
    assert show_value("\x1b[31m") == '"\\u001b[31m"'
