"""Options of dataclasses: checked, converted, every fault with its path."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Gt

from fedmr_merge.options import Faults, check_options, mapping


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
