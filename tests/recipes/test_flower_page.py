"""What docs/flower.md shows are recipes, and its table is what `deployment` takes."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from fedmr_merge.recipe.deployment import Deployment
from fedmr_merge.recipe.schema import parse_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "flower.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))
def test_every_block_is_a_recipe(block):
    assert parse_recipe(yaml.safe_load(block), "docs/flower.md").deployment is not None


def test_the_table_of_deployment_is_its_options_and_their_defaults():
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| `([^`|]+)` \|$", PAGE.split("## What `deployment` says")[1], flags=re.MULTILINE
    )
    defaults = vars(Deployment())
    assert {name: yaml.safe_load(default) for name, default in rows} == defaults
    assert [name for name, _ in rows] == [field.name for field in fields(Deployment)]
