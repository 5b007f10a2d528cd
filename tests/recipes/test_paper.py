"""The recipes of the paper's Table 1: every cell can be written down, and they run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from data_layouts import write_cifar10, write_cifar100, write_femnist

from fedmr_merge.recipe.run import Run
from fedmr_merge.recipe.schema import read_recipe

FOLDER = Path(__file__).parents[2] / "recipes" / "paper"
MODELS = ("cnn", "resnet20", "vgg16")
DATA = ("cifar10", "cifar100", "femnist")
FILES = [f"{preset}{model}-{data}.yaml" for preset in ("", "authors/") for model in MODELS for data in DATA]
METHODS = {"fedavg", "fedprox", "scaffold", "moon", "fedgen", "clusamp", "fedmr"}


def stages(recipe):
    """Return the resolved stages by name."""
    return {name: options for stage in recipe.to_json()["stages"] for name, options in stage.items()}


def documented_settings():
    """Return the arguments of every indented line of the README, as the shell would split them."""
    lines = re.findall(r"^    (--set .*)$", (FOLDER / "README.md").read_text(), flags=re.MULTILINE)
    return [[word for word in shlex.split(line) if word != "--set"] for line in lines]


def test_there_is_a_file_for_every_model_and_data_set_and_no_other():
    assert sorted(str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*.yaml")) == sorted(FILES)


@pytest.mark.parametrize("file", FILES)
def test_is_fedmr_on_that_model_and_data_set(file):
    recipe = read_recipe(FOLDER / file)
    model, data = Path(file).stem.split("-")
    authors = file.startswith("authors/")
    assert recipe.name == Path(file).stem + ("-authors" if authors else "")
    assert recipe.data.name == data
    assert recipe.model.name == {("cnn", True): "lenet", ("resnet20", True): "resnet20-preact"}.get(
        (model, authors), model
    )
    assert recipe.training.momentum == (0.5 if authors else 0.9)
    found = stages(recipe)
    assert found["fedmr"]["rule"] == ("tensor" if authors else "layer")
    assert found["fedmr"]["rounds"] + found.get("fedavg", {"rounds": 0})["rounds"] == 500
    two_stages = model == "vgg16" or (model == "resnet20" and not authors)
    assert ("fedavg" in found) == two_stages
    # Its own words say how to run it.
    assert f"fedmr-merge run recipes/paper/{file}" in (FOLDER / file).read_text()


@pytest.mark.parametrize("file", [file for file in FILES if "femnist" not in file])
def test_every_documented_heterogeneity_and_method_can_be_set(file):
    for settings in documented_settings():
        read_recipe(FOLDER / file, settings)


def test_the_documented_settings_are_all_methods_and_heterogeneities():
    read = [read_recipe(FOLDER / "cnn-cifar10.yaml", settings) for settings in [[], *documented_settings()]]
    assert {name for recipe in read for name in stages(recipe)} == METHODS | {"evaluate", "publish"}
    partitions = {recipe.partition.options().get("alpha", recipe.partition.name) for recipe in read}
    assert partitions == {0.1, 0.5, 1.0, "iid"}
    assert len({recipe.name for recipe in read}) == len(METHODS)


@pytest.mark.parametrize(
    ("file", "write", "settings"),
    [
        (
            "cnn-cifar10.yaml",
            lambda folder: write_cifar10(folder, train=60),
            ["data.partition.clients=4", "data.partition.min_examples=5", "stages[0].fedmr.rounds=2"],
        ),
        (
            "authors/resnet20-cifar100.yaml",
            lambda folder: write_cifar100(folder, train=100),
            ["data.partition.clients=4", "stages[0].fedmr.rounds=2"],
        ),
        (
            "authors/cnn-femnist.yaml",
            lambda folder: write_femnist(folder, {f"f{number}": 20 + number for number in range(5)}),
            ["data.writers=4", "data.min_examples=20", "stages[0].fedmr.rounds=2"],
        ),
    ],
)
def test_runs_on_tiny_data_in_the_same_layout(tmp_path, file, write, settings):
    write(tmp_path / "data")
    settings = [
        *settings,
        f"data.path={tmp_path / 'data'}",
        "training.clients_per_round=2",
        "training.local_epochs=1",
        "training.batch_size=10",
        "training.device=cpu",
    ]
    with Run(read_recipe(FOLDER / file, settings), tmp_path / "run") as run:
        before = {name: tensor.clone() for name, tensor in run.federation.module.state_dict().items()}
        events = list(run.execute())
        assert len(run.federation.partition) == 4
    rounds = [event.result for event in events if hasattr(event, "result")]
    assert [result.round for result in rounds] == [1, 2]
    assert all(result.plan is not None for result in rounds)
    final = rounds[-1].state.global_weights
    assert any(not torch.equal(final[name], tensor) for name, tensor in before.items())
    assert (tmp_path / "run" / "global" / "model.safetensors").is_file()
