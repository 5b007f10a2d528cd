"""What a data set is: the base of the plug-ins in this folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.plugin import Plugin


class DataSet(Plugin):
    """Base of the data sets in `datasets/`, one file each; the dataclass fields are the options."""

    @property
    def task(self) -> str:
        """The name of the task that a run has with these data, unless its recipe says otherwise."""
        return "image-classification"

    @property
    def hub_id(self) -> str | None:
        """Return the name of the data set on the Hub, ORG/NAME; None for one that is not there."""
        return None

    def with_options(self, changes: Mapping[str, Any]) -> DataSet:
        """Return the same data set with other values of some options."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def load(self) -> Data:
        """Load the data into main memory; the same bytes every time.

        Raises DataError when it is not there, saying what to download and where to put it.
        """
        raise NotImplementedError
