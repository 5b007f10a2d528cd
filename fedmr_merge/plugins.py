"""Plug-ins are files: each module of a folder is a plug-in, and the module's name is the plug-in's name.

Algorithms, data sets, partitions and architectures are found this way. Underscores in a file's name read as hyphens
in a recipe; `base.py` holds their base class, and files whose name starts with an underscore hold what several plug-ins
share.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


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
