"""The base class of plug-ins: frozen dataclasses that are named as their files, and whose fields are their options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, TypeVar

from fedmr_merge.own_code import OwnCode, is_import_path, source_version

P = TypeVar("P", bound="Plugin")


class Plugin:
    """Base of the frozen dataclasses in `algorithms/`, `datasets/`, `models/`, `partitions/` and `tasks/`."""

    argument: ClassVar[str] = ""
    """What follows the colon in the name, as in `torchvision:resnet18`; set by the catalogue."""
    known_as: ClassVar[str] = ""
    """The name in a recipe where it is not that of the file: an entry point's, or an import path; set by `named`."""

    @property
    def name(self) -> str:
        """The name of the plug-in in a recipe."""
        if self.known_as:
            return self.known_as
        plugin = type(self).__module__.rpartition(".")[2].replace("_", "-")
        return f"{plugin}:{self.argument}" if self.argument else plugin

    @property
    def code_version(self) -> str | None:
        """The version of the user's own code that the plug-in runs; None for one that comes with a package."""
        return source_version(type(self)) if is_import_path(self.known_as) else None

    @property
    def packages(self) -> tuple[str, ...]:
        """The installed packages, besides those of every run, that its results depend on."""
        return ()

    def options(self) -> dict[str, Any]:
        """Return the options by name, as a recipe would spell them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class OwnPlugin(Plugin):
    """Base of the plug-ins that call a class or function of the user's own; their options are those of the call."""

    code: OwnCode

    @property
    def name(self) -> str:
        """The import path of the class or function, or `python:Name` where it was given from Python."""
        return self.code.name

    @property
    def code_version(self) -> str | None:
        """The version of the file that the class or function is in."""
        return self.code.version

    def options(self) -> dict[str, Any]:
        """Return what the class or function is called with."""
        return dict(self.code.options)


@cache
def named(cls: type[P], name: str) -> type[P]:
    """Return the subclass of a plug-in that a recipe knows by this name, always the same one."""
    return _subclass(cls, {"known_as": name})


@cache
def with_argument(cls: type[P], argument: str) -> type[P]:
    """Return the subclass of a plug-in whose name has this argument, always the same one."""
    return _subclass(cls, {"argument": argument})


def not_imported(base: type[P], name: str, options: Mapping[str, Any]) -> P:
    """Return what stands for a plug-in of the user's own in a recipe that is read and not run: its name and options."""

    def own_options(_: Plugin) -> dict[str, Any]:
        return dict(options)

    return _subclass(base, {"known_as": name, "options": own_options})()


def _subclass(cls: type[P], attributes: Mapping[str, Any]) -> type[P]:
    made: type[P] = type(cls.__name__, (cls,), {**attributes, "__module__": cls.__module__, "__doc__": cls.__doc__})
    return made
