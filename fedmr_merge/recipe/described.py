"""What a recipe can name: plug-ins, layer rules, stages and the options of training and deployment.

Everything is read from the plug-ins and the dataclasses of the options themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedmr_merge.federated.catalogue import ALGORITHMS, ARCHITECTURES, DATA_SETS, PARTITIONS, TASKS, Catalogue
from fedmr_merge.federated.training.options import Training
from fedmr_merge.layers.rules import describe_rules
from fedmr_merge.option_docs import OptionDoc, describe_options, nested_options, summary
from fedmr_merge.recipe.deployment import Deployment
from fedmr_merge.recipe.schema import Running
from fedmr_merge.recipe.stages import OTHER_STAGES, Length, Rates


@dataclass(frozen=True)
class Described:
    """Something that a recipe can name."""

    name: str  #: as a recipe spells it, e.g. `fedmr`, `torchvision:NAME` or `training.privacy`
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


def _stages() -> list[Described]:
    found = _options("METHOD", "What a stage of any method takes beside the method's own options.", Length, Rates)
    for name, cls in OTHER_STAGES.items():
        found += _options(name, summary(cls), cls)
    return found


def _options(name: str, about: str, *classes: type[Any]) -> list[Described]:
    """Describe the options of dataclasses under one name, then the mappings of options among them under their paths."""
    found = [Described(name, about, tuple(option for cls in classes for option in describe_options(cls)))]
    for cls in classes:
        for option, nested in nested_options(cls):
            found += _options(f"{name}.{option}", summary(nested), nested)
    return found


KINDS: dict[str, Callable[[], list[Described]]] = {
    "methods": _of(ALGORITHMS),
    "stages": _stages,
    "training": lambda: _options("training", summary(Training), Training, Running),
    **{kind: _of(catalogue) for kind, catalogue in _CATALOGUES.items() if kind != "methods"},
    "deployment": lambda: _options("deployment", summary(Deployment), Deployment),
    "rules": _rules,
}
