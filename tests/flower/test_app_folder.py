"""The Flower app of a recipe."""

from __future__ import annotations

import importlib
import sys

import pytest
from small_run import command
from small_runs import recipe

from fedmr_merge.errors import OutputError
from fedmr_merge.flower.app_folder import write_app
from fedmr_merge.flower.client_app import client_app
from fedmr_merge.flower.server import server_app
from fedmr_merge.recipe.own import Own
from fedmr_merge.recipe.schema import read_recipe


def test_the_app_holds_the_recipe_and_flower_takes_it(tmp_path):
    checked = recipe(deployment={"clients": {"berlin": 3}})
    write_app(checked, tmp_path / "app", config={"out": 'runs/"odd"', "fresh": True, "extend": False, "folder": ""})
    assert read_recipe(tmp_path / "app" / "recipe.yaml") == checked
    utils = importlib.import_module("flwr.cli.config_utils")
    config, warnings = utils.load_and_validate(tmp_path / "app" / "pyproject.toml")
    assert warnings == []
    assert config["tool"]["flwr"]["app"]["config"]["out"] == 'runs/"odd"'
    bundle = importlib.import_module("flwr.cli.build").build_fab_from_disk(tmp_path / "app")
    assert b"recipe.yaml" in bundle
    assert len(bundle) < 100_000


def test_its_two_sides_can_be_loaded(tmp_path, monkeypatch):
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

    assert isinstance(client_app(tmp_path / "recipe.yaml"), ClientApp)
    assert isinstance(server_app(tmp_path / "recipe.yaml"), ServerApp)
    write_app(recipe(), tmp_path / "app")
    monkeypatch.syspath_prepend(tmp_path / "app")
    for side, kind in (("server", ServerApp), ("client", ClientApp)):
        assert isinstance(importlib.import_module(f"fedmr_merge_app.{side}").app, kind)
        monkeypatch.delitem(sys.modules, f"fedmr_merge_app.{side}")
    monkeypatch.delitem(sys.modules, "fedmr_merge_app")


ROWS = """
from dataclasses import dataclass
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.data.partitions.base import PartitionMethod

@dataclass(frozen=True)
class Rows(PartitionMethod):
    def split(self, data, seed):
        return Partition.of([[0, 1], [2, 3]])
"""


def of_rows(module: str) -> str:
    """Return a recipe whose partition is the class `Rows` of a module."""
    return (
        f"name: own\ndata: {{name: digits, partition: {{kind: '{module}:Rows'}}}}\nmodel: {{name: cnn}}\n"
        "training: {clients_per_round: 2}\nstages: [{fedavg: {rounds: 1}}]\n"
    )


def test_code_that_the_recipe_names_travels_with_it(tmp_path):
    (tmp_path / "own_rows.py").write_text(ROWS)
    (tmp_path / "recipe.yaml").write_text(of_rows("own_rows"))
    checked = read_recipe(tmp_path / "recipe.yaml", own=Own((tmp_path,)))
    write_app(checked, tmp_path / "app", code=[tmp_path])
    assert (tmp_path / "app" / "own_rows.py").read_bytes() == (tmp_path / "own_rows.py").read_bytes()


def test_of_a_run_folder_no_code_travels_and_that_of_the_current_folder_does(tmp_path, monkeypatch):
    """A run folder may come from elsewhere: what lies in it is data."""
    run = tmp_path / "run"
    (run / "rows_here").mkdir(parents=True)
    (run / "rows_here" / "__init__.py").write_text("raise SystemExit('this is not the code of the user')\n")
    (run / "recipe.yaml").write_text(of_rows("rows_here"))
    (tmp_path / "rows_here.py").write_text(ROWS)
    monkeypatch.chdir(tmp_path)
    assert command("flower", "app", run, "-o", "app") == 0
    assert (tmp_path / "app" / "rows_here.py").read_text() == ROWS
    assert not (tmp_path / "app" / "rows_here").exists()


def test_code_of_the_current_folder_travels_and_that_beside_the_recipe_goes_first(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "rows_first.py").write_text(ROWS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "recipe.yaml").write_text(of_rows("rows_first"))
    assert command("flower", "app", "recipes/recipe.yaml", "-o", "app") == 0
    assert (tmp_path / "app" / "rows_first.py").read_text() == ROWS
    (tmp_path / "recipes" / "rows_second.py").write_text(f"{ROWS}# beside the recipe\n")
    (tmp_path / "rows_second.py").write_text(ROWS)
    (tmp_path / "recipes" / "recipe.yaml").write_text(of_rows("rows_second"))
    assert command("flower", "app", "recipes/recipe.yaml", "-o", "second") == 0
    assert (tmp_path / "second" / "rows_second.py").read_text().endswith("# beside the recipe\n")


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "app").mkdir()
    with pytest.raises(OutputError, match="app"):
        write_app(recipe(), tmp_path / "app")
    assert list((tmp_path / "app").iterdir()) == []


def test_the_command_writes_it_and_names_what_comes_next(tmp_path, capsys):
    assert command("flower", "app", "digits", "-o", tmp_path / "app", "--set", "seed=5") == 0
    assert read_recipe(tmp_path / "app" / "recipe.yaml").seed == 5
    assert f"next: flwr run {tmp_path / 'app'} NAME --stream" in capsys.readouterr().out
