"""Data of the user's own, by the import path of a function and from Python: trained, resumed, and checked by a hash."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_code
import pytest
import torch
import yaml
from own_code import hashes, stop_after
from small_run import command
from torch import nn

from fedmr_merge import DataError, RecipeError, RunError, as_data, load_model, run_recipe
from fedmr_merge.recipe.own import Own
from fedmr_merge.recipe.schema import read_recipe

DATA = """
import torch

from fedmr_merge import as_data


def load(examples: int = 60, shift: float = 0.0):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(examples + 20, 5, generator=generator) + shift
    y = (x[:, 0] > shift).long()
    return (x[:examples], y[:examples]), (x[examples:], y[examples:])


def numbers():
    (x, y), (tx, ty) = load()
    return (x, x[:, 0]), (tx, tx[:, 0])


def clients():
    (x, y), test = load()
    return as_data((x, y, torch.arange(60) // 10), test, class_names=["low", "high"])


def nothing():
    return None


def crashing():
    return 1 / 0


def linear(input_shape, num_outputs):
    return torch.nn.Linear(input_shape[0], num_outputs)


value = 5
"""
STAGES = [{"fedavg": {"rounds": 1}}, {"fedmr": {"rounds": 2}}]
RECIPE: dict[str, Any] = {
    "name": "own",
    "data": {"name": "own_data:load", "partition": {"kind": "iid", "clients": 6}},
    "model": {"name": "own_data:linear"},
    "task": {"name": "tabular-classification"},
    "training": {"clients_per_round": 3, "local_epochs": 1, "batch_size": 5, "threads": 1},
    "stages": STAGES,
}


@pytest.fixture(autouse=True)
def modules_are_forgotten() -> Iterator[None]:
    with own_code.forgetting():
        yield


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "own_data.py").write_text(DATA)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path / "own.yaml"


def linear(input_shape: Any, num_outputs: int) -> nn.Module:
    return nn.Linear(input_shape[0], num_outputs)


def own(shift: float = 0.0, count: int = 60) -> Any:
    namespace: dict[str, Any] = {}
    exec(DATA, namespace)
    return namespace["load"](count, shift)


def test_a_recipe_names_the_function_and_its_options(recipe: Path) -> None:
    out = recipe.parent / "run"
    assert command("run", recipe, "--set", "data.examples=50", "-o", out) == 0
    resolved = yaml.safe_load((out / "recipe.yaml").read_text())
    assert resolved["data"] == {
        "name": "own_data:load",
        "examples": 50,
        "shift": 0.0,
        "partition": {"kind": "iid", "clients": 6},
    }
    dealt = json.loads((out / "partition.json").read_text())
    assert sum(map(len, dealt["clients"])) == 50
    assert len(dealt["data_sha256"]) == 64
    assert command("partition", recipe, "-o", recipe.parent / "plot.png") == 0


def test_a_run_that_was_interrupted_ends_with_the_same_bytes(recipe: Path, tmp_path: Path) -> None:
    assert command("run", recipe, "-o", tmp_path / "whole") == 0
    stop_after(2, recipe, tmp_path / "run")
    assert command("run", recipe, "-o", tmp_path / "run") == 0
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")


def test_from_python_the_same_data_give_the_same_models(recipe: Path, tmp_path: Path) -> None:
    assert command("run", recipe, "-o", tmp_path / "by-recipe") == 0
    raw = {**RECIPE, "data": {"partition": RECIPE["data"]["partition"]}}
    done = run_recipe(raw, tmp_path / "given", model=linear, data=own())
    assert done.rounds == 3
    assert done.metrics["test_accuracy"] == done.test_accuracy
    found, expected = (hashes(tmp_path / run) for run in ("given", "by-recipe"))
    weights = [name for name in expected if name.endswith("model.safetensors")]
    assert weights
    assert {name: found[name] for name in weights} == {name: expected[name] for name in weights}


def test_a_run_with_given_data_is_resumed_with_them_and_not_with_others(tmp_path: Path) -> None:
    raw = {**RECIPE, "data": {"partition": {"kind": "iid", "clients": 6}}}
    del raw["task"], raw["model"]
    run_recipe(raw, tmp_path / "whole", model=linear, data=own())
    resolved = yaml.safe_load((tmp_path / "whole" / "recipe.yaml").read_text())
    assert resolved["data"]["name"] == "python:data"
    assert resolved["task"] == {"name": "tabular-classification"}, "the task that such data are for"

    stop_after(2, raw, tmp_path / "run", model=linear, data=own())
    before = hashes(tmp_path / "run")
    for other in (own(shift=1e-3), own(count=61)):
        with pytest.raises((RunError, DataError), match=r"the data python:data are not those that the run began with"):
            run_recipe(tmp_path / "run", model=linear, data=other)
    with pytest.raises(RecipeError, match=r"data\.name: python:data was given from Python, and has to be given again"):
        run_recipe(tmp_path / "run", model=linear)
    assert hashes(tmp_path / "run") == before
    run_recipe(tmp_path / "run", model=linear, data=as_data(*own()))
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")


def test_the_function_of_a_recipe_must_return_the_same_data_again(recipe: Path, tmp_path: Path) -> None:
    with own_code.forgetting():
        stop_after(1, recipe, tmp_path / "run")
    (tmp_path / "own_data.py").write_text(DATA.replace("manual_seed(1)", "manual_seed(1234)"))
    with pytest.raises(RunError, match="the data own_data:load are not those that the run began"):
        run_recipe(recipe, tmp_path / "run")


def test_numbers_to_predict_and_clients_of_the_data(recipe: Path, tmp_path: Path) -> None:
    changes = ["data.name=own_data:numbers", "task.name=regression", "stages=[{fedmr: {rounds: 2}}]"]
    done = run_recipe(recipe, tmp_path / "numbers", settings=changes)
    assert done.test_accuracy is None
    assert done.metrics["test_rmse"] > 0
    natural = ["data.name=own_data:clients", "data.partition={kind: natural}"]
    run_recipe(recipe, tmp_path / "natural", settings=natural)
    dealt = json.loads((tmp_path / "natural" / "partition.json").read_text())
    assert dealt["clients"][1] == list(range(10, 20))
    assert dealt["class_names"] == ["low", "high"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data.name=own_data:lod", "data.name: own_data has no attribute 'lod', did you mean load?"),
        ("data.name=own_dat:load", "data.name: there is no module 'own_dat' in "),
        ("data.name=own_data:value", "data: own_data:value is of type int, not a function that returns (train, test)"),
        ("data.name=own_data:nothing", "own_data:nothing gave an object of type NoneType, not (train, test)"),
        (
            "data.name=own_data:crashing",
            "own_data:crashing failed: ZeroDivisionError: division by zero (own_data.py, line",
        ),
        ("data.exampels=5", "data.exampels: unknown option, did you mean examples?"),
        ("data.examples=many", 'data.examples: should be a valid integer, found "many"'),
        ("task.name=image-classification", "task image-classification needs images, and these data are features"),
        ("task.name=regression", "task regression needs a number for every example"),
        ("model.name=cnn", "model cnn takes images, and these data are features"),
        ("data.name=python:data", "data.name: python:data was given from Python, and has to be given again"),
        ("data.partition={kind: natural}", "this data set does not say whose example is whose"),
    ],
)
def test_bad_data_are_one_line_and_exit_code_2(
    recipe: Path, settings: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("run", recipe, "--set", settings, "-o", recipe.parent / "run") == 2
    error, *more = capsys.readouterr().err.splitlines()
    assert message in error
    assert len(more) <= 1
    assert not (recipe.parent / "run").exists()


def test_what_is_given_must_be_data(tmp_path: Path) -> None:
    raw = {**RECIPE, "data": {"partition": {"kind": "iid", "clients": 6}}}
    with pytest.raises(DataError, match=r"data gave an object of type Tensor, not \(train, test\)"):
        run_recipe(raw, tmp_path / "run", model=linear, data=torch.zeros(5))
    with pytest.raises(RecipeError, match=r"data\.partition\.kind: is missing"):
        run_recipe({**RECIPE, "data": {}}, tmp_path / "run", model=linear, data=own())


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (torch.randn(80, 5), torch.arange(80) % 2),
        (torch.randn(80, 5), torch.randn(80)),
        (torch.randn(80, 2, 7), torch.arange(80) % 2),
        (torch.rand(80, 1, 4, 4), torch.arange(80) % 2),
    ],
    ids=["table", "regression", "signals", "images"],
)
def test_what_was_trained_is_published_and_loaded(inputs: Any, targets: Any, tmp_path: Path) -> None:
    def net(input_shape: Any, num_outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_outputs))

    raw = {**RECIPE, "data": {"partition": {"kind": "iid", "clients": 6}}}
    del raw["task"]
    raw["stages"] = [{"fedmr": {"rounds": 1}}, {"evaluate": {}}, {"publish": {}}]
    done = run_recipe(raw, tmp_path / "run", model=net, data=((inputs[:60], targets[:60]), (inputs[60:], targets[60:])))
    assert done.model is not None
    model = load_model(done.model, model=net)
    outputs = 1 if targets.is_floating_point() else 2
    assert model(inputs[:3]).shape == (3, outputs)
    card = (done.model / "README.md").read_text()
    assert "data of whoever trained the model, which do not come with it" in card
    assert "datasets:" not in card
    assert command("push", done.model, "ORG/NAME", "--dry-run") == 0


def test_an_option_can_be_another_one_on_another_machine(recipe: Path) -> None:
    data = read_recipe(recipe, own=Own((recipe.parent,))).data
    other = data.with_options({"examples": 30})
    assert other.options() == {"examples": 30, "shift": 0.0}
    assert (other.load().examples("train"), data.load().examples("train")) == (30, 60)
