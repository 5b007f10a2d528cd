"""What a recipe can name: methods, models, data sets, tasks, partitions, rules and stages, with their options.

Everything is read from the plug-ins themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedmr_merge.federated.catalogue import ALGORITHMS, ARCHITECTURES, DATA_SETS, PARTITIONS, TASKS, Catalogue
from fedmr_merge.layers.rules import describe_rules
from fedmr_merge.option_docs import OptionDoc, describe_options, summary


@dataclass(frozen=True)
class Described:
    """Something that a recipe can name."""

    name: str  #: as a recipe spells it, e.g. `fedmr` or `torchvision:NAME`
    summary: str
    options: tuple[OptionDoc, ...]


def _of(catalogue: Catalogue[Any]) -> Callable[[], list[Described]]:
    def describe() -> list[Described]:
        found = []
        for name, cls in catalogue.usable():
            about = summary(cls).removeprefix(f"`{name}`: ")
            found.append(Described(name, about[:1].upper() + about[1:], tuple(describe_options(cls))))
        return found

    return describe


_CATALOGUES: dict[str, Catalogue[Any]] = {
    "methods": ALGORITHMS,
    "models": ARCHITECTURES,
    "data": DATA_SETS,
    "tasks": TASKS,
    "partitions": PARTITIONS,
}


def broken_plugins() -> list[str]:
    """Return a line for every plug-in of an installed package that cannot be used."""
    return [line for catalogue in _CATALOGUES.values() for line in catalogue.broken()]


def _rules() -> list[Described]:
    return [Described(name, " ".join(text.split()), ()) for name, text in describe_rules()]


KINDS: dict[str, Callable[[], list[Described]]] = {
    **{kind: _of(catalogue) for kind, catalogue in _CATALOGUES.items()},
    "rules": _rules,
}
