"""Breast cancer in Wisconsin: 569 rows of 30 numbers that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedmr_merge.federated.data.datasets._features import Table, table_data
from fedmr_merge.federated.data.datasets._hold_out import hold_out
from fedmr_merge.federated.data.datasets.base import DataSet
from fedmr_merge.federated.data.features import FeatureData

_TEST_SHARE = 0.2


@dataclass(frozen=True)
class BreastCancer(DataSet):
    """Breast Cancer Wisconsin (Street, Wolberg and Mangasarian 1993): 30 numbers about cell nuclei, 2 classes.

    A fifth of each class is held out for testing, the same rows for every seed.
    """

    @property
    def task(self) -> str:
        """The classification of rows."""
        return "tabular-classification"

    def load(self) -> FeatureData:
        """Return 456 training and 113 test rows."""
        from sklearn.datasets import load_breast_cancer  # takes a second to import

        found = load_breast_cancer()
        test = hold_out(found.target, _TEST_SHARE, "breast-cancer: held-out part")
        rows, targets = found.data.astype(np.float64), found.target.astype(np.float64)
        return table_data(
            (rows[~test], targets[~test]),
            (rows[test], targets[test]),
            Table(
                names=[str(name) for name in found.feature_names],
                class_names=[str(name) for name in found.target_names],
                is_public=True,
            ),
        )
