"""What a recipe names becomes an object: a plug-in with its options, or code of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedmr_merge.errors import FedmrMergeError, shown
from fedmr_merge.federated.catalogue import Catalogue
from fedmr_merge.federated.data.datasets._own import GivenDataSet
from fedmr_merge.federated.data.datasets.base import DataSet
from fedmr_merge.federated.models.base import Architecture
from fedmr_merge.federated.plugin import Plugin, named, not_imported
from fedmr_merge.options import Faults, check_options
from fedmr_merge.own_code import import_object, is_import_path

P = TypeVar("P", bound=Plugin)


@dataclass(frozen=True)
class Own:
    """Where the code of the user's own comes from that a recipe names."""

    folders: tuple[Path, ...] = ()  #: searched for modules before the installed packages are; none: the current one
    imported: bool = True  #: whether it is imported; a recipe that is only read needs none of it
    model: Architecture | None = None  #: given from Python, in place of the recipe's
    data: DataSet | None = None  #: given from Python, in place of the recipe's; the partition stays

    @property
    def task(self) -> str | None:
        """The name of the task that the given data are for, unless the recipe names one."""
        return self.data.own_task if isinstance(self.data, GivenDataSet) else None


OWN = Own()


def make(cls: type[Any], options: Mapping[str, Any], path: str, faults: Faults) -> Any:
    """Return an object of a dataclass with these options; None, with the faults noted, where they are not possible."""
    before = len(faults)
    values = check_options(cls, options, path, faults)
    return cls(**values) if len(faults) == before else None


def make_plugin(
    catalogue: Catalogue[P], name: Any, options: Mapping[str, Any], paths: tuple[str, str], faults: Faults, own: Own
) -> P | None:
    """Return the plug-in of a name, or the code of an import path, with its options; None with the faults noted.

    `paths` are those of the options and of the name in the recipe.
    """
    path, place = paths
    found: P | None = None
    if name not in catalogue and not is_import_path(name):
        faults.unknown(place, name, catalogue.names(), f"name {shown(str(name))!r}")
        return None
    try:
        if name in catalogue:
            found = make(catalogue.find(name), options, path, faults)
        elif own.imported:
            found = _own(catalogue, name, options, path, faults, own)
        else:
            found = not_imported(catalogue.base, name, options)
    except FedmrMergeError as error:
        faults.add(place, str(error))
    return found


def _own(
    catalogue: Catalogue[P], name: str, options: Mapping[str, Any], path: str, faults: Faults, own: Own
) -> P | None:
    target = import_object(name, own.folders or (Path.cwd(),))
    if catalogue.wrap is not None and not (isinstance(target, type) and issubclass(target, catalogue.base)):
        return catalogue.wrap(target, name, options, path, faults)
    if fault := catalogue.fault(target):
        raise FedmrMergeError(f"{name} {fault}")
    found: P | None = make(named(target, name), options, path, faults)
    return found
