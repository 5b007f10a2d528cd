"""Methods, partitions, tasks, data sets and models that are plug-ins of the user's own, named by their import paths."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_code
import pytest
import yaml
from own_code import hashes, stop_after
from small_run import command

from fedmr_merge.recipe.json_schema import recipe_schema

PLUGINS = '''
from dataclasses import dataclass

import torch

from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.data.datasets.digits import Digits
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.data.partitions.base import PartitionMethod
from fedmr_merge.federated.models.base import Architecture
from fedmr_merge.federated.tasks.image_classification import ImageClassification


@dataclass(frozen=True)
class Mine(FedAvg):
    """FedAvg with an option."""

    mu: float = 0.5


@dataclass(frozen=True)
class Halves(PartitionMethod):
    clients: int = 4

    def split(self, data, seed):
        return Partition.of([range(n * 50, (n + 1) * 50) for n in range(self.clients)])


@dataclass(frozen=True)
class Net(Architecture):
    width: int = 6

    def build(self, shape, outputs):
        layers = torch.nn.Linear(64, self.width), torch.nn.Linear(self.width, outputs)
        return torch.nn.Sequential(torch.nn.Flatten(), *layers)


@dataclass(frozen=True)
class Figures(Digits):
    pass


@dataclass(frozen=True)
class Pictures(ImageClassification):
    pass


class Undecorated(PartitionMethod):
    pass


def function():
    pass
'''
RECIPE: dict[str, Any] = {
    "name": "own",
    "data": {"name": "own_plugins:Figures", "partition": {"kind": "own_plugins:Halves"}},
    "model": {"name": "own_plugins:Net", "width": 5},
    "task": {"name": "own_plugins:Pictures"},
    "training": {"clients_per_round": 2, "local_epochs": 1, "threads": 1},
    "stages": [{"own_plugins:Mine": {"rounds": 3, "mu": 0.25}}, {"publish": {}}],
}


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "own_plugins.py").write_text(PLUGINS)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(RECIPE))
    with own_code.forgetting():
        yield tmp_path / "own.yaml"


def test_a_run_of_them_is_recorded_and_resumed_to_the_same_bytes(recipe: Path, tmp_path: Path) -> None:
    assert command("run", recipe, "-o", tmp_path / "whole") == 0
    resolved = yaml.safe_load((tmp_path / "whole" / "recipe.yaml").read_text())
    assert resolved["model"] == {"name": "own_plugins:Net", "width": 5}
    assert resolved["data"]["partition"] == {"kind": "own_plugins:Halves", "clients": 4}
    assert resolved["task"] == {"name": "own_plugins:Pictures"}
    assert resolved["stages"][0]["own_plugins:Mine"]["mu"] == 0.25
    assert len(json.loads((tmp_path / "whole" / "partition.json").read_text())["clients"]) == 4
    stop_after(2, recipe, tmp_path / "run")
    assert command("run", recipe, "-o", tmp_path / "run") == 0
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")
    assert command("report", tmp_path / "run", "-o", tmp_path / "report") == 0


def test_code_that_was_changed_since_the_run_began_is_a_warning(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(2, recipe, tmp_path / "run")
    (tmp_path / "own_plugins.py").write_text(PLUGINS + "# changed\n")
    capsys.readouterr()
    assert command("run", recipe, "-o", tmp_path / "run") == 0
    warned = re.findall(r"code of own_plugins:(\w+): [0-9a-f]{16} → [0-9a-f]{16}; the bytes", capsys.readouterr().err)
    assert warned == ["Figures", "Halves", "Net", "Pictures", "Mine"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stages=[{own_plugins:Mine: {rounds: 1, nu: 2}}]", "stages[0].own_plugins:Mine.nu: unknown option"),
        ("stages=[{own_plugins:Mine: {}}]", "stages[0].own_plugins:Mine.rounds: is missing"),
        ("stages=[{own_plugins:Halves: {rounds: 1}}]", "own_plugins:Halves is not a class derived from fedmr_merge."),
        ("stages=[{own_plugins:Thine: {rounds: 1}}]", "own_plugins has no attribute 'Thine', did you mean Mine?"),
        ("data.partition.kind=own_plugins:Undecorated", "own_plugins:Undecorated is not a frozen dataclass"),
        ("data.partition.kind=own_plugins:function", "own_plugins:function is not a class derived from fedmr_merge."),
        ("task.name=own_plugins:function", "task.name: own_plugins:function is not a class derived from fedmr_merge."),
        ("model.width=wide", 'model.width: should be a valid integer, found "wide"'),
    ],
)
def test_faults_are_one_line(recipe: Path, setting: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("run", recipe, "--set", setting, "-o", recipe.parent / "run") == 2
    assert message in capsys.readouterr().err.splitlines()[0]
    assert not (recipe.parent / "run").exists()


def test_the_schema_allows_import_paths() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(recipe_schema())
    assert validator.is_valid(RECIPE)
    for key, wrong in (("model", {"name": "torchvision:"}), ("model", {"name": "own:Net:x"}), ("stages", [{"a:b": 3}])):
        assert not validator.is_valid(RECIPE | {key: wrong})
