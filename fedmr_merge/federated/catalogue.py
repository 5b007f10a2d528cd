"""Methods, data sets, partitions, tasks and models by name: those of this package, and those of installed packages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fedmr_merge.errors import FedmrMergeError
from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.data.datasets._own import own_data
from fedmr_merge.federated.data.datasets.base import DataSet
from fedmr_merge.federated.data.partitions.base import PartitionMethod
from fedmr_merge.federated.models._own import own_model
from fedmr_merge.federated.models.base import Architecture
from fedmr_merge.federated.plugin import Plugin, named, with_argument
from fedmr_merge.federated.tasks.base import Task
from fedmr_merge.options import Faults
from fedmr_merge.plugins import installed_plugins, load_installed, load_plugin, plugin_names

P = TypeVar("P", bound=Plugin)

Wrap = Callable[[Any, str, Mapping[str, Any], str, Faults], P | None]
"""(object, name, options, path, faults) → the plug-in that an object of the user's own becomes; None with the faults
noted, where it cannot be one.
"""


@dataclass(frozen=True)
class Catalogue(Generic[P]):
    """The plug-ins of one folder, and those that installed packages add by entry points of a group.

    Some have an argument in their name: `torchvision:resnet18` is the plug-in `torchvision` with argument `resnet18`.
    """

    package: str
    base: type[P]
    group: str  #: of the entry points
    arguments: Mapping[str, str] = field(default_factory=dict)  #: plug-in -> what its argument stands for
    wrap: Wrap[P] | None = None  #: what makes a plug-in of other objects that a user names by their import paths

    def names(self) -> tuple[str, ...]:
        """Return the names of all plug-ins as a recipe spells them, sorted; none is imported.

        One with an argument has its placeholder in its name, as in `torchvision:NAME`.
        """
        names = [f"{name}:{self.arguments[name]}" if name in self.arguments else name for name in self._own_names()]
        return tuple(sorted([*names, *installed_plugins(self.group, self._own_names())]))

    def __contains__(self, name: object) -> bool:
        """Whether `find` knows this name."""
        plugin, colon, argument = str(name).partition(":")
        if plugin not in self._own_names():
            return str(name) in installed_plugins(self.group, self._own_names())
        return bool(argument) if plugin in self.arguments else not colon

    def find(self, name: str) -> type[P]:
        """Import a plug-in and return its class.

        Raises KeyError when there is none of this name, FedmrMergeError when an installed package has it and it cannot
        be imported.
        """
        if name not in self:
            raise KeyError(name)
        plugin, _, argument = name.partition(":")
        if plugin in self._own_names():
            cls = load_plugin(self.package, plugin, self.base)
            return with_argument(cls, argument) if argument else cls  # type: ignore[arg-type]
        found = load_installed(self.group, name)
        if fault := self.fault(found):
            raise FedmrMergeError(f"the entry point {name!r} of {self.group} {fault}")
        return named(found, name)

    def usable(self) -> tuple[tuple[str, type[P]], ...]:
        """Return name and class of all plug-ins; those of installed packages that cannot be imported are left out."""
        found = []
        for name in self.names():
            try:
                found.append((name, self.find(name)))
            except FedmrMergeError:
                continue
        return tuple(found)

    def broken(self) -> tuple[str, ...]:
        """Return a line for every plug-in of an installed package that cannot be used."""
        found = [fault for _, fault in sorted(installed_plugins(self.group, self._own_names()).faults.items())]
        for name in self.names():
            try:
                self.find(name)
            except FedmrMergeError as error:
                found.append(str(error))
        return tuple(found)

    def fault(self, found: object) -> str | None:
        """Return what keeps an object from being a plug-in of this kind; None when nothing does."""
        if not isinstance(found, type) or not issubclass(found, self.base):
            return f"is not a class derived from {self.base.__module__}.{self.base.__name__}"
        if not dataclasses.is_dataclass(found):
            return "is not a frozen dataclass"
        return None

    def _own_names(self) -> tuple[str, ...]:
        return plugin_names(self.package)


ALGORITHMS = Catalogue("fedmr_merge.federated.algorithms", Algorithm, "fedmr_merge.methods")
DATA_SETS = Catalogue(
    "fedmr_merge.federated.data.datasets", DataSet, "fedmr_merge.datasets", {"hub": "ORG/NAME"}, own_data
)
PARTITIONS = Catalogue("fedmr_merge.federated.data.partitions", PartitionMethod, "fedmr_merge.partitions")
TASKS = Catalogue("fedmr_merge.federated.tasks", Task, "fedmr_merge.tasks")
ARCHITECTURES = Catalogue(
    "fedmr_merge.federated.models",
    Architecture,
    "fedmr_merge.models",
    {"timm": "NAME", "torchvision": "NAME", "transformers": "ID_OR_FOLDER"},
    own_model,
)
