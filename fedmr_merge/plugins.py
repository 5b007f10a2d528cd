"""Plug-ins are files: each module of a folder is a plug-in, and the module's name is the plug-in's name.

Algorithms, data sets, partitions, tasks and architectures are found this way. Underscores in a file's name read as
hyphens in a recipe; `base.py` holds their base class, and files whose name starts with an underscore hold what several
plug-ins share. Installed packages add plug-ins by entry points, whose names are the plug-ins' names.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Collection
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, TypeVar

from fedmr_merge.errors import FedmrMergeError, shown
from fedmr_merge.own_code import blame

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)


@cache
def plugin_names(package: str) -> tuple[str, ...]:
    """Return the names of the plug-ins in a package, sorted; none of them is imported."""
    folder = importlib.import_module(package)
    names = (module.name for module in pkgutil.iter_modules(folder.__path__))
    return tuple(sorted(name.replace("_", "-") for name in names if not name.startswith("_") and name != "base"))


def load_plugin(package: str, name: str, base: type[T]) -> type[T]:
    """Import the plug-in and return its class: the one subclass of `base` that its file defines.

    Raises KeyError when there is no such plug-in.
    """
    if name not in plugin_names(package):
        raise KeyError(name)
    module = importlib.import_module(f"{package}.{name.replace('-', '_')}")
    return _only_subclass(module, base)


def _only_subclass(module: ModuleType, base: type[T]) -> type[T]:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define one {base.__name__}, it defines {len(found)}")
    return found[0]


class Installed(dict[str, EntryPoint]):
    """The entry points of a group by name; `faults` has a line for each name that cannot be used."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: dict[str, str] = {}


def installed_plugins(group: str, taken: Collection[str] = ()) -> Installed:
    """Return the entry points of a group, of installed packages; none is imported.

    A name that is among `taken`, or that several packages have, stands for none of them.
    """
    return _installed(group, tuple(taken), tuple(sys.path))


@lru_cache
def _installed(group: str, taken: tuple[str, ...], _: tuple[str, ...]) -> Installed:
    found = Installed()
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        name = f"the entry point {shown(point.name)!r} of {group}"
        if not _NAME.fullmatch(point.name):
            found.faults[point.name] = f"{name} is left out: a name has letters, digits, '_' and '-'"
        elif point.name in taken:
            found.faults[point.name] = f"{name} is left out: a plug-in of fedmr-merge has this name"
        elif point.name in found and found[point.name].value != point.value:
            found.faults[point.name] = f"{name} is left out: several packages have one of this name"
        else:
            found[point.name] = point
    for name in found.faults:
        found.pop(name, None)
    return found


def load_installed(group: str, name: str) -> Any:
    """Import what an entry point names. Raises FedmrMergeError, in one line, when that fails."""
    [*_, point] = entry_points(group=group, name=name)
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise FedmrMergeError(
            f"the entry point {name!r} of {group}, {shown(point.value)}, cannot be imported: {blame(error)}",
            hint="update or uninstall the package that has it",
        ) from error
