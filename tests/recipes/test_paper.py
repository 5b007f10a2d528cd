"""The recipes of the paper's Table 1: every cell can be written down, and they run."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
import torch
from data_layouts import write_cifar10, write_cifar100, write_femnist

from fedmr_merge.recipe.run import Run
from fedmr_merge.recipe.schema import parse_recipe, read_recipe
from fedmr_merge.recipe.sweep_file import read_sweep, sweep_runs

FOLDER = Path(__file__).parents[2] / "recipes" / "paper"
MODELS = ("cnn", "resnet20", "vgg16")
DATA = ("cifar10", "cifar100", "femnist")
IN_FILES = dict(zip(("CNN", "ResNet-20", "VGG-16", "CIFAR-10", "CIFAR-100", "FEMNIST"), MODELS + DATA, strict=True))
FILES = [f"{preset}{model}-{data}.yaml" for preset in ("", "authors/") for model in MODELS for data in DATA]
SWEEPS = ("table1", "figure3", "figure4", "figure5", "overhead", "lenet-cifar10")
README = (FOLDER / "README.md").read_text()


def stages(recipe):
    """Return the resolved stages by name."""
    return {name: options for stage in recipe.to_json()["stages"] for name, options in stage.items()}


def rows_of(heading):
    """Return the cells of a table of the README, without code marks, row by row."""
    table = README.split(f"| {heading} |")[1].split("\n\n")[0]
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def settings_of(text):
    """Return the settings in a cell of the README, as the shell would split them."""
    return [word for word in shlex.split(text) if word != "--set"] if text.startswith("--set") else []


def method_setting(method, data):
    """Return what the README says to set for a method on a data set."""
    said = {tuple(row[:2]): row[2] for row in rows_of("method | data set")}
    text = said.get((method, data)) or said[method, "all"]
    more = re.match(r"the same with `(.*)` added", text)
    return settings_of(
        said[method, "CIFAR-10"].replace("}}, {evaluate", f", {more[1]}}}}}, {{evaluate") if more else text
    )


def test_there_is_a_file_for_every_model_and_data_set_and_no_other():
    found = [str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*.yaml")]
    assert sorted(found) == sorted([*FILES, *(f"{name}.yaml" for name in SWEEPS)])


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
    assert f"# fedmr-merge run paper/{file.removesuffix('.yaml')}\n" in (FOLDER / file).read_text()


def test_every_cell_of_table_1_is_one_command():
    heterogeneity = {name: settings_of(text) for name, text in rows_of("heterogeneity")}
    mu = {"CIFAR-10": 0.01, "CIFAR-100": 0.001, "FEMNIST": 0.1}
    alpha_beta = {"CIFAR-10": (0.2, 0.2), "CIFAR-100": (10, 1), "FEMNIST": (10, 10)}
    cells = list(csv.DictReader((FOLDER / "table1.csv").open()))
    assert len(cells) == 3 * (4 + 4 + 1) * 7
    for preset in ("", "authors/"):
        # The settings are the same for both: of the authors' files one heterogeneity is enough.
        for cell in cells if not preset else [cell for cell in cells if cell["heterogeneity"] in ("iid", "natural")]:
            method, data = cell["method"], cell["dataset"]
            file = FOLDER / f"{preset}{IN_FILES[cell['model']]}-{IN_FILES[data]}.yaml"
            found = read_recipe(file, heterogeneity[cell["heterogeneity"]] + method_setting(method, data))
            options = stages(found)[method.lower()]
            assert found.rounds == 500
            partition = found.partition
            assert cell["heterogeneity"] in (partition.name, f"alpha={getattr(partition, 'alpha', None)}")
            if method == "FedProx":
                assert options["mu"] == mu[data]
            if method == "FedGen":
                assert (options["alpha"], options["beta"]) == alpha_beta[data]
                assert options["generator_lr"] == (1e-4 if data == "CIFAR-100" else 3e-4)


def test_the_readme_can_be_typed():
    (command,) = re.findall(r"^ *(fedmr-merge run .*)$", README.replace("\\\n", ""), flags=re.MULTILINE)
    _, _, name, *words = shlex.split(command)
    recipe = read_recipe(FOLDER.parent / f"{name}.yaml", [word for word in words if word != "--set"])
    assert (recipe.name, recipe.partition.alpha) == ("resnet20-cifar100-0.1-scaffold", 0.1)
    assert "scaffold" in stages(recipe)
    for text in re.findall(r"`(--set [^`]+)`", README):
        read_recipe(FOLDER / "cnn-cifar10.yaml", settings_of(text))


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


@pytest.mark.parametrize("name", SWEEPS)
def test_every_run_of_a_sweep_is_a_valid_recipe(name):
    for run in sweep_runs(read_sweep(FOLDER / f"{name}.yaml"), seeds=[0]):
        parse_recipe(run.recipe, run.name)


def test_table1_is_27_cells_of_7_methods_under_both_presets_with_the_papers_numbers():
    runs = sweep_runs(read_sweep(FOLDER / "table1.yaml"), seeds=[0])
    cells = {tuple(run.choices[axis] for axis in ("model", "dataset", "heterogeneity")) for run in runs}
    assert (len(cells), len(runs)) == (27, 2 * 27 * 7)
    in_table = {
        (IN_FILES[row["model"]], IN_FILES[row["dataset"]], row["heterogeneity"], row["method"])
        for row in csv.DictReader((FOLDER / "table1.csv").open())
    }
    assert in_table == {tuple(run.choices[axis] for axis in run.choices if axis != "preset") for run in runs}
