"""A partition that was made elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass

from fedmr_merge.checkpoint.header import open_regular
from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.data.partitions.base import PartitionMethod
from fedmr_merge.paths import local_path

_HINT = "`fedmr-merge docs train` explains partition files"


@dataclass(frozen=True)
class File(PartitionMethod):
    """Read the partition from a JSON file.

    It holds the `partition.json` of a run, a list with a list of example numbers for every client, or an object that
    has such a list for every client's number, at its top or as its `train_data`, where the authors of FedMR have it.
    """

    path: str  #: the file

    def split(self, data: Data, seed: int) -> Partition:
        """Return the partition of the file; the seed changes nothing."""
        file = local_path(self.path)
        try:
            with open_regular(file) as stream:  # a pipe would be waited for
                value = json.loads(stream.read())
        except OSError as error:
            raise DataError(
                f"{file}: {error.strerror}", hint="set data.partition.path to a JSON file", path=file
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}: not JSON: {error}", hint=_HINT, path=file) from error
        try:
            partition = Partition.from_json(_in_own_format(value))
        except DataError as error:
            raise DataError(f"{file}: {error}", hint=error.hint or _HINT, path=file, client=error.client) from error
        last = max(int(indices[-1]) for indices in partition.clients)
        if last >= data.examples("train"):
            raise DataError(
                f"{file}: names training example {last}, but there are only {data.examples('train')}, counted from 0",
                hint="was it made for another data set?",
                path=file,
            )
        return partition


def _in_own_format(value: object) -> dict[str, object]:
    if isinstance(value, dict) and "format_version" in value:
        return value
    if isinstance(value, dict):
        # Beside it lie the settings that a partition was made with; example numbers say all that is needed.
        value = value.get("train_data", value)
    if isinstance(value, dict):
        numbers = [str(client) for client in range(len(value))]
        if set(value) != set(numbers):
            raise DataError("the clients of a partition are numbered 0, 1, 2, …")
        value = [value[number] for number in numbers]
    return {"format_version": 1, "clients": value}
