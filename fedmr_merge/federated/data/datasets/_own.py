"""Data of the user's own as a data set: what a function returns that a recipe names, or what was given from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets.base import DataSet
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.data.own import as_data, task_of
from fedmr_merge.federated.plugin import OwnPlugin
from fedmr_merge.options import Faults
from fedmr_merge.own_code import GIVEN, OwnCode


@dataclass(frozen=True)
class OwnDataSet(OwnPlugin, DataSet):
    """The data that a function of the user's own returns."""

    def with_options(self, changes: Mapping[str, Any]) -> OwnDataSet:
        """Return the same function with other values of some options."""
        options, values = {**self.code.options, **changes}, {**self.code.values, **changes}
        return replace(self, code=replace(self.code, options=options, values=values))

    def load(self) -> Data:
        """Call the function. Raises DataError when it fails, or returns something else than data."""
        return to_data(self.code.call(DataError), self.name)


@dataclass(frozen=True)
class GivenDataSet(DataSet):
    """Data that were given from Python."""

    data: Data = field(compare=False)

    @property
    def name(self) -> str:
        """What a run's recipe says in place of the data."""
        return f"{GIVEN}:data"

    def options(self) -> dict[str, Any]:
        """Return no options: the data are as they were given."""
        return {}

    @property
    def own_task(self) -> str:
        """The name of the task that the data are for, unless a recipe says otherwise."""
        return task_of(self.data)

    def load(self) -> Data:
        """Return the data."""
        return self.data


def own_data(target: Any, name: str, raw: Mapping[str, Any], path: str, faults: Faults) -> OwnDataSet | None:
    """Return the data set of a function that returns data; None, with the fault noted, for another object."""
    if not callable(target):
        faults.add(path, f"{name} is of type {type(target).__name__}, not a function that returns (train, test)")
        return None
    return OwnDataSet(OwnCode.of(target, name, raw, path, faults))


def given_data(data: Any) -> DataSet:
    """Return the data set of what was given from Python: (train, test), data, or a data set of this package."""
    if isinstance(data, DataSet):
        return data
    return GivenDataSet(to_data(data, "data"))


def to_data(found: Any, name: str) -> Data:
    """Return data, or what a pair (train, test) comes to. Raises DataError for anything else."""
    if isinstance(found, Data):
        return found
    if isinstance(found, Mapping) and {"train", "test"} <= found.keys():  # as `datasets.load_dataset` returns them
        found = (found["train"], found["test"])
    if isinstance(found, tuple | list) and len(found) == 2:
        return as_data(found[0], found[1])
    raise DataError(
        f"{name} gave an object of type {type(found).__name__}, not (train, test)",
        hint="return (train, test), or as_data(train, test, …)",
    )
