"""Plug-ins of an installed package are found by their entry points, and broken ones break nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from own_package import install_package
from small_run import RECIPE, command

from fedmr_merge import load_model
from fedmr_merge.errors import RecipeError
from fedmr_merge.recipe.json_schema import recipe_schema
from fedmr_merge.recipe.reference_page import reference_page
from fedmr_merge.recipe.run import Run
from fedmr_merge.recipe.schema import parse_recipe, read_recipe

FROM_PACKAGE = {
    "data": {"name": "figures", "partition": {"kind": "dealt", "clients": 6}},
    "model": {"name": "narrow", "width": 5},
    "task": {"name": "sorting"},
    "stages": [{"halved": {"rounds": 2}}, {"publish": {}}],
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(autouse=True)
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)


def test_a_recipe_uses_them_and_what_it_publishes_is_loaded(tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE | FROM_PACKAGE, "small.yaml")
    resolved = recipe.to_json()
    assert resolved["model"] == {"name": "narrow", "width": 5}
    assert resolved["task"] == {"name": "sorting"}
    assert (resolved["data"]["name"], resolved["data"]["partition"]["kind"]) == ("figures", "dealt")
    with Run(recipe, tmp_path / "run") as run:
        assert [event.result.method for event in run.execute() if hasattr(event, "result")] == ["halved", "halved"]
    assert load_model(tmp_path / "run" / "global").hidden.out_features == 5
    assert read_recipe(tmp_path / "run" / "recipe.yaml") == recipe
    with Run(recipe, tmp_path / "run") as run:
        assert run.resumed_from is not None


def test_options_are_checked_as_those_of_other_plugins() -> None:
    with pytest.raises(RecipeError, match=r"model\.widht: unknown option, did you mean width"):
        parse_recipe(RECIPE | {"model": {"name": "narrow", "widht": 5}}, "small.yaml")


def test_they_are_listed_and_broken_ones_are_reported_in_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("list") == 0
    output, errors = capsys.readouterr()
    for name in ("narrow: A network", "halved: FedAvg", "figures: The digits", "dealt: Like `iid`", "cnn: Two 5x5"):
        assert f"  {name}" in output
    assert "      width: int [8]  of the hidden layer" in output
    faults = [line for line in errors.splitlines() if "entry point" in line]
    assert len(faults) == 5
    text = "\n".join(faults)
    assert "'cnn' of fedmr_merge.models is left out: a plug-in of fedmr-merge has this name" in text
    assert "'undecorated' of fedmr_merge.models is not a frozen dataclass" in text
    assert "'lost' of fedmr_merge.methods, figures:Lost, cannot be imported: AttributeError" in text
    assert "'guessing' of fedmr_merge.tasks, figures:Guessing, cannot be imported: AttributeError" in text
    assert "cannot be imported: ZeroDivisionError: division by zero (figures_crashing.py, line 3)" in text


def test_the_schema_and_the_reference_page_have_them() -> None:
    schema = recipe_schema()
    assert "narrow" in [choice["title"] for choice in schema["properties"]["model"]["oneOf"]]
    assert "halved" in schema["properties"]["stages"]["items"]["properties"]
    assert "crashing" not in json.dumps(schema)
    assert "### `figures`" in reference_page()


def test_a_recipe_that_names_a_broken_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE | {"stages": [{"lost": {"rounds": 1}}]}))
    assert command("run", tmp_path / "recipe.yaml", "-o", tmp_path / "run") == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert "stages[0].lost: the entry point 'lost' of fedmr_merge.methods, figures:Lost, cannot be imported" in error
    assert not (tmp_path / "run").exists()
