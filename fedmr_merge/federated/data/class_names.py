"""Classes of one name that two parts of a data set number differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmr_merge.errors import DataError, shown


def renumbered(
    labels: NDArray[Any], names: Sequence[str], training_names: Sequence[str], what: str
) -> NDArray[np.int64]:
    """Return the labels of a test part with the numbers that the training part gives to classes of the same names.

    Args:
        labels: The classes of the examples, by their number in the test part.
        names: The names of the classes 0, 1, … of the test part.
        training_names: The names of the classes 0, 1, … of the training part.
        what: What messages call the labels of the test part.

    Raises:
        DataError: A label has no name, or one that the training part does not have. Labels of parts that name their
            classes alike are not checked.
    """
    found: NDArray[np.int64] = labels.astype(np.int64)
    if tuple(names) == tuple(training_names):
        return found
    numbers = {name: number for number, name in enumerate(training_names)}
    for label in np.unique(found).tolist():
        if not 0 <= label < len(names):
            raise DataError(f"{what} has the class {label}, and there are {len(names):,} classes, counted from 0")
        if names[label] not in numbers:
            raise DataError(
                f"{what} has the class {shown(names[label], 60)!r}, which the training part does not have",
                hint="take the examples of that class out of the test part",
            )
    by_label: NDArray[np.int64] = np.array([numbers.get(name, -1) for name in names], dtype=np.int64)
    return by_label[found]
