"""A small package that is really installed into a temporary folder, with entry points for fedmr-merge."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

PLUGINS = '''
"""Plug-ins of a package."""

from dataclasses import dataclass

import torch
from torch import nn

from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.data.datasets.digits import Digits
from fedmr_merge.federated.data.partitions.iid import Iid
from fedmr_merge.federated.models.base import Architecture, Classifier
from fedmr_merge.federated.tasks.image_classification import ImageClassification


class Net(Classifier):
    def __init__(self, shape, classes, width):
        super().__init__()
        channels, height, w = shape
        self.hidden = nn.Linear(channels * height * w, width)
        self.last = nn.Linear(width, classes)

    def features(self, images):
        return self.hidden(images.flatten(1)).relu()

    def head(self, features):
        return self.last(features)


@dataclass(frozen=True)
class Narrow(Architecture):
    """A network of two linear layers."""

    width: int = 8  #: of the hidden layer

    def build(self, image_shape, num_classes):
        return Net(image_shape, num_classes, self.width)


@dataclass(frozen=True)
class Halved(FedAvg):
    """FedAvg with another name."""


@dataclass(frozen=True)
class Figures(Digits):
    """The digits, with another name."""


@dataclass(frozen=True)
class Dealt(Iid):
    """Like `iid`, with another name."""


@dataclass(frozen=True)
class Sorting(ImageClassification):
    """Image classification, with another name."""


class Undecorated(Architecture):
    pass
'''

_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "figures-for-fedmr"
version = "1.0"

[project.entry-points."fedmr_merge.models"]
narrow = "figures:Narrow"
cnn = "figures:Narrow"
undecorated = "figures:Undecorated"

[project.entry-points."fedmr_merge.datasets"]
figures = "figures:Figures"

[project.entry-points."fedmr_merge.methods"]
halved = "figures:Halved"
lost = "figures:Lost"

[project.entry-points."fedmr_merge.tasks"]
sorting = "figures:Sorting"
guessing = "figures:Guessing"

[project.entry-points."fedmr_merge.partitions"]
dealt = "figures:Dealt"
crashing = "figures_crashing:Dealt"
"""


def install_package(folder: Path) -> Path:
    """Install the package; returns the folder to put on the path."""
    source, target = folder / "source", folder / "site"
    source.mkdir(parents=True)
    (source / "figures.py").write_text(textwrap.dedent(PLUGINS))
    (source / "figures_crashing.py").write_text("import sys\n\nvalue = 1 / 0\n")
    only = '[tool.hatch.build.targets.wheel]\ninclude = ["*.py"]\n'
    (source / "pyproject.toml").write_text(_PROJECT + "\n" + only)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True)
    return target
