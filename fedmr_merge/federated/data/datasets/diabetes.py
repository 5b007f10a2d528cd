"""The progression of diabetes: 442 rows of 10 numbers that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedmr_merge.federated.data.datasets._features import Table, table_data
from fedmr_merge.federated.data.datasets._hold_out import hold_out
from fedmr_merge.federated.data.datasets.base import DataSet
from fedmr_merge.federated.data.features import FeatureData

_TEST_SHARE = 0.2


@dataclass(frozen=True)
class Diabetes(DataSet):
    """Diabetes (Efron et al. 2004): 10 numbers about a patient, and the progression of the disease in a year.

    A fifth is held out for testing, the same rows for every seed.
    """

    @property
    def task(self) -> str:
        """The prediction of a number."""
        return "regression"

    def load(self) -> FeatureData:
        """Return 354 training and 88 test rows."""
        from sklearn.datasets import load_diabetes  # takes a second to import

        found = load_diabetes(scaled=False)
        test = hold_out(np.zeros(len(found.target), dtype=np.int64), _TEST_SHARE, "diabetes: held-out part")
        rows, targets = found.data.astype(np.float64), found.target.astype(np.float64)
        return table_data(
            (rows[~test], targets[~test]),
            (rows[test], targets[test]),
            Table(names=[str(name) for name in found.feature_names], target_name="progression", is_public=True),
        )
