"""Handwritten digits: 1,797 real 8x8 images that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits

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
        pixels, labels = load_digits(return_X_y=True)
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
