"""Values that Python code gives, as plain ones: a number of NumPy as Python's own, a single string as a list of one.

Lineages are JSON, which knows no other numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from fedmr_merge.errors import PlanError, shown


def whole(value: Any, name: str) -> int:
    """Return a whole number of any type as an int. Raises PlanError, which begins with `name`, for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise PlanError(f"{name} must be a whole number, found {shown(repr(value), 80)}") from None


def number(value: Any, name: str) -> float:
    """Return a number of any type as a float, or as an int where it is of a type of whole numbers.

    Raises PlanError, which begins with `name`, for anything else.
    """
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        return float(value.__float__())  # float() would read strings, too
    except (AttributeError, TypeError, ValueError):
        raise PlanError(f"{name} must be a number, found {shown(repr(value), 80)}") from None


def strings(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return strings as a tuple; a single one is not taken apart into its characters."""
    return (value,) if isinstance(value, str) else tuple(value)
