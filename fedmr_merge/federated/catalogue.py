"""The methods, data sets, partitions and models of this package by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, TypeVar

from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.data.datasets.base import DataSet
from fedmr_merge.federated.data.partitions.base import PartitionMethod
from fedmr_merge.federated.models.base import Architecture
from fedmr_merge.federated.plugin import Plugin
from fedmr_merge.plugins import load_plugin, plugin_names

P = TypeVar("P", bound=Plugin)


@dataclass(frozen=True)
class Catalogue(Generic[P]):
    """The plug-ins of one folder.

    Some have an argument in their name: `torchvision:resnet18` is the plug-in `torchvision` with argument `resnet18`.
    """

    package: str
    base: type[P]
    arguments: Mapping[str, str] = field(default_factory=dict)  #: plug-in -> what its argument stands for

    def names(self) -> tuple[str, ...]:
        """Return the names of all plug-ins as a recipe spells them, sorted; none is imported.

        One with an argument has its placeholder in its name, as in `torchvision:NAME`.
        """
        names = plugin_names(self.package)
        return tuple(f"{name}:{self.arguments[name]}" if name in self.arguments else name for name in names)

    def __contains__(self, name: object) -> bool:
        """Whether `find` knows this name."""
        plugin, colon, argument = str(name).partition(":")
        if plugin not in plugin_names(self.package):
            return False
        return bool(argument) if plugin in self.arguments else not colon

    def find(self, name: str) -> type[P]:
        """Import a plug-in and return its class. Raises KeyError when there is none of this name."""
        if name not in self:
            raise KeyError(name)
        plugin, _, argument = name.partition(":")
        cls = load_plugin(self.package, plugin, self.base)
        return _with_argument(cls, argument) if argument else cls  # type: ignore[arg-type]


@cache
def _with_argument(cls: type[Any], argument: str) -> type[Any]:
    """Return the subclass of a plug-in that has this argument, always the same one."""
    return type(cls.__name__, (cls,), {"argument": argument, "__module__": cls.__module__, "__doc__": cls.__doc__})


ALGORITHMS = Catalogue("fedmr_merge.federated.algorithms", Algorithm)
DATA_SETS = Catalogue("fedmr_merge.federated.data.datasets", DataSet, {"hub": "ORG/NAME"})
PARTITIONS = Catalogue("fedmr_merge.federated.data.partitions", PartitionMethod)
ARCHITECTURES = Catalogue("fedmr_merge.federated.models", Architecture, {"torchvision": "NAME"})
