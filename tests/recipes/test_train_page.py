"""What docs/train.md shows can be typed."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

from fedmr_merge.federated.catalogue import ARCHITECTURES, DATA_SETS, PARTITIONS, TASKS
from fedmr_merge.federated.federation import Training
from fedmr_merge.recipe.schema import Running, parse_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "train.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
WHOLE = {
    "name": "page",
    "data": {"name": "digits", "partition": {"kind": "iid"}},
    "model": {"name": "cnn"},
    "stages": [{"fedavg": {"rounds": 1}}],
}


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_a_recipe_or_a_part_of_one(block):
    parse_recipe(WHOLE | yaml.safe_load(block), "docs/train.md")


def test_every_plug_in_is_in_a_table():
    for catalogue in (ARCHITECTURES, DATA_SETS, PARTITIONS, TASKS):
        for name in catalogue.names():
            assert re.search(rf"^\|.*`{re.escape(name)}`.*\|", PAGE, flags=re.MULTILINE), name


def test_the_table_of_training_is_its_options_and_their_defaults():
    section = PAGE.split("\n## Local training")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\| `([^`|]+)`[^|]*\|$", section, flags=re.MULTILINE)
    found = {name: yaml.safe_load(default) for name, default in rows}
    defaults = {field.name: field.default for part in (Training, Running) for field in fields(part)}
    assert found == {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


def test_every_option_of_a_plug_in_is_named():
    named = set(re.findall(r"`(\w+)(?:: [^`]*)?`", PAGE)) | set(re.findall(r"^ +(\w+): ", PAGE, flags=re.MULTILINE))
    for catalogue in (ARCHITECTURES, DATA_SETS, PARTITIONS, TASKS):
        for name in catalogue.names():
            assert {field.name for field in fields(catalogue.find(name))} <= named, name


@pytest.mark.parametrize(
    ("name", "shape", "outputs"),
    [
        *((name, (3, 32, 32), 10) for name in ("cnn", "lenet", "resnet20", "resnet20-preact", "vgg16")),
        *((name, (8,), 10) for name in ("mlp",)),
        *((name, (128, 258), outputs) for name, outputs in (("text-classifier", 10), ("gpt", 258))),
    ],
)
def test_the_numbers_of_parameters_are_right(name, shape, outputs):
    (count,) = re.findall(rf"^\| `{name}` .*\| ([\d,]+)[^|]*\|$", PAGE, flags=re.MULTILINE)
    with torch.device("meta"):
        module = ARCHITECTURES.find(name)().build(shape, outputs)
    assert sum(parameter.numel() for parameter in module.parameters()) == int(count.replace(",", ""))
