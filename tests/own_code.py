"""Models of somebody's own, as modules beside a recipe, and a recipe that trains one of them for a second."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from fedmr_merge import run_recipe

NETS = '''
import torch
from torch import nn


class SmallNet(nn.Module):
    """A plain module: nothing of fedmr-merge in it."""

    def __init__(self, num_classes: int, width: int = 8):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.hidden = nn.Linear(16 * width, 12)
        self.last = nn.Linear(12, num_classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        return self.last(self.hidden(x.view(len(x), -1)).relu())


class Split(SmallNet):
    """The same in two parts."""

    def features(self, x):
        x = nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        return self.hidden(x.view(len(x), -1)).relu()

    def head(self, features):
        return self.last(features)


class WrongParts(Split):
    def head(self, features):
        return 2 * self.last(features)


def linear(input_shape: tuple, num_classes: int):
    channels, height, width = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))


def nothing():
    return "a model"


def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


def empty():
    return nn.Flatten()


def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))


def wrong_size():
    return nn.Sequential(nn.Flatten(), nn.Linear(65, 10))


class Branching(nn.Module):
    """Asks for the value of a tensor, which vmap cannot map."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = self.fc(x.flatten(1))
        return x if x.mean().item() > 0 else 2 * x


class NotAModule:
    pass


built = nn.Linear(3, 4)
value = 5
'''

RECIPE: dict[str, Any] = {
    "name": "own",
    "seed": 3,
    "data": {"name": "digits", "partition": {"kind": "iid", "clients": 6}},
    "model": {"name": "own_nets:SmallNet", "width": 4},
    "training": {"clients_per_round": 3, "local_epochs": 1, "threads": 1},
    "stages": [{"fedavg": {"rounds": 1}}, {"fedmr": {"rounds": 2}}, {"publish": {}}],
}


def write_project(folder: Path, nets: str = NETS, **changes: Any) -> Path:
    """Write the modules and a recipe; returns the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own_nets.py").write_text(nets)
    (folder / "own.yaml").write_text(yaml.safe_dump(RECIPE | changes))
    return folder / "own.yaml"


@contextmanager
def forgetting() -> Iterator[None]:
    """Forget the modules that were imported within the block, so that others of their names can be."""
    before, places = set(sys.modules), list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = places
        for name in set(sys.modules) - before:
            if name.startswith("own_"):
                del sys.modules[name]


class StoppedError(Exception):
    """What ends a run in the middle."""


def stop_after(rounds: int, recipe: Any, folder: Path, **given: Any) -> None:
    """Begin a run, and stop it after so many rounds."""

    def stop(event: Any) -> None:
        if event.result.round == rounds:
            raise StoppedError

    with suppress(StoppedError):
        run_recipe(recipe, folder, on_event=stop, **given)


def hashes(run: Path) -> dict[str, str]:
    """Return the SHA-256 of all that a run's models are: recipe, checkpoints, and what it published."""
    files = [path for path in run.rglob("*") if path.suffix in (".safetensors", ".yaml") or path.name == "config.json"]
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
