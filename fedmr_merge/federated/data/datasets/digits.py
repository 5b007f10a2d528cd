"""Handwritten digits: 1,797 real 8x8 images that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from fedmr_merge.federated.data.datasets._hold_out import hold_out
from fedmr_merge.federated.data.datasets.base import DataSet
from fedmr_merge.federated.data.images import ImageData

_TEST_SHARE = 0.2


@dataclass(frozen=True)
class Digits(DataSet):
    """The test part of the UCI optical recognition of handwritten digits (Alpaydin and Kaynak 1998), 10 classes.

    360 images are held out for testing, the same share of every class, the same ones for every seed.
    """

    def load(self) -> ImageData:
        """Return 1,437 training and 360 test images of shape [1, 8, 8]."""
        pixels, labels = _read()
        # The 17 grey levels 0..16 are spread over 0..255, the scale of every other data set.
        images = torch.from_numpy(np.rint(pixels * 255 / 16).astype(np.uint8)).view(-1, 1, 8, 8)
        targets = torch.from_numpy(labels.astype(np.int64))
        test = torch.from_numpy(hold_out(labels, _TEST_SHARE, "digits: held-out part"))
        return ImageData(
            train_images=images[~test],
            train_labels=targets[~test],
            test_images=images[test],
            test_labels=targets[test],
            class_names=tuple(str(digit) for digit in range(10)),
            # Of the training part; a test holds them to it.
            mean=(0.3053,),
            std=(0.3760,),
        )


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels, [1797, 64] of 0 to 16, and the labels, from scikit-learn's file.

    The file is read without scikit-learn, to import which takes longer than several rounds of training.
    """
    found = find_spec("sklearn")
    file = Path(found.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if found else None
    if file is None or not file.is_file():
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        return pixels, labels
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)
