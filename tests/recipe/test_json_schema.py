"""The JSON schema of recipes accepts what fedmr-merge accepts, and refuses what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from fedmr_merge.recipe.json_schema import recipe_schema
from fedmr_merge.recipe.ready_made import ready_made_recipes
from fedmr_merge.recipe.schema import parse_recipe
from fedmr_merge.recipe.text import read_recipe_text

RECIPES = [recipe for recipe in ready_made_recipes() if not recipe.is_sweep]
SCHEMA = recipe_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
SMALL = yaml.safe_load(
    "{name: small, data: {name: digits, partition: {kind: dirichlet, alpha: 0.5, clients: 20}}, model: {name: cnn},"
    " training: {lr: 0.1, privacy: null}, stages: [{fedmr: {rounds: 3, until: {accuracy: 0.9}}}, {publish: {}}]}"
)


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_that_comes_with_the_package_is_valid(recipe: Any) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(read_recipe_text(recipe.path))] == []


def test_a_resolved_recipe_is_valid() -> None:
    raw = {**SMALL, "stages": [{"fedmr": {"rounds": 3}}, {"publish": {}}]}
    assert VALIDATOR.is_valid(parse_recipe(raw, "small").to_json())


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.update(nonsense=1),
        lambda raw: raw["data"].update(nonsense=1),
        lambda raw: raw["data"]["partition"].update(nonsense=1),
        lambda raw: raw["data"]["partition"].update(alpha=-1),
        lambda raw: raw["model"].update(name="nonsense"),
        lambda raw: raw["training"].update(nonsense=1),
        lambda raw: raw["training"].update(lr=0),
        lambda raw: raw["stages"][0]["fedmr"].update(nonsense=1),
        lambda raw: raw["stages"][0].update(fedavg={"rounds": 1}),
        lambda raw: raw["stages"].append({"feddyn": {"rounds": 1}}),
        lambda raw: raw["stages"][0].update(fedmr={}),
        lambda raw: raw.pop("stages"),
    ],
)
def test_what_is_unknown_or_out_of_bounds_is_refused(change: Callable[[Any], object]) -> None:
    raw = copy.deepcopy(SMALL)
    change(raw)
    assert not VALIDATOR.is_valid(raw)


def test_options_have_their_comments() -> None:
    fedmr = SCHEMA["properties"]["stages"]["items"]["properties"]["fedmr"]
    assert fedmr["description"].startswith("K models")
    assert fedmr["properties"]["probability"]["maximum"] == 1
    assert "description" in fedmr["properties"]["rule"]
