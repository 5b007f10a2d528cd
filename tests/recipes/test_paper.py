"""The recipes of the paper's Table 1: every cell can be written down, and they run."""

from __future__ import annotations

import csv
import html
import io
import re
from pathlib import Path

import pytest
import torch
from data_layouts import write_cifar10, write_cifar100, write_femnist
from small_run import command

from fedmr_merge.recipe.own import Own
from fedmr_merge.recipe.ready_made import find_ready_made
from fedmr_merge.recipe.run import Run
from fedmr_merge.recipe.schema import parse_recipe, read_recipe
from fedmr_merge.recipe.sweep_file import read_sweep, sweep_runs
from fedmr_merge.report.comparison import comparison_csv
from fedmr_merge.report.study import read_study

FOLDER = Path(__file__).parents[2] / "recipes" / "paper"
MODELS = ("cnn", "resnet20", "vgg16")
DATA = ("cifar10", "cifar100", "femnist")
IN_FILES = dict(zip(("CNN", "ResNet-20", "VGG-16", "CIFAR-10", "CIFAR-100", "FEMNIST"), MODELS + DATA, strict=True))
FILES = [f"{preset}{model}-{data}.yaml" for preset in ("", "authors/") for model in MODELS for data in DATA]
SWEEPS = (
    *("table1", "figure3", "figure4", "figure5", "overhead"),
    *("lenet-cifar10", "lenet-cifar10-hsu", "lenet-cifar10-long", "scaffold-momentum"),
)
README = (FOLDER / "README.md").read_text()


def stages(recipe):
    """Return the resolved stages by name."""
    return {name: options for stage in recipe.to_json()["stages"] for name, options in stage.items()}


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
    groups, momentum = ("rule tensor", "momentum 0.5") if authors else ("rule layer", "momentum 0.9")
    assert recipe.preset.startswith("authors: " if authors else "paper: ")
    assert groups in recipe.preset
    assert momentum in recipe.preset
    found = stages(recipe)
    assert found["fedmr"]["rule"] == ("tensor" if authors else "layer")
    assert found["fedmr"]["rounds"] + found.get("fedavg", {"rounds": 0})["rounds"] == 500
    two_stages = model == "vgg16" or (model == "resnet20" and not authors)
    assert ("fedavg" in found) == two_stages
    # Its own words say how to run it.
    assert f"# fedmr-merge run paper/{file.removesuffix('.yaml')}\n" in (FOLDER / file).read_text()


def test_every_run_of_table_1_is_what_text_or_code_say():
    mu = {"cifar10": 0.01, "cifar100": 0.001, "femnist": 0.1}
    alpha_beta = {"cifar10": (0.2, 0.2), "cifar100": (10, 1), "femnist": (10, 10)}
    for run in sweep_runs(read_sweep(FOLDER / "table1.yaml"), seeds=[0]):
        preset, _, data, heterogeneity, method = run.choices.values()
        found = parse_recipe(run.recipe, run.name)
        options = stages(found)[method.lower()]
        assert found.rounds == 500
        assert (found.data.name, found.training.momentum) == (data, 0.5 if preset == "authors" else 0.9)
        assert heterogeneity in (found.partition.name, f"alpha={getattr(found.partition, 'alpha', None)}")
        if method == "FedProx":
            assert options["mu"] == (mu[data] if preset == "paper" else 0.01)
        if method == "FedGen":
            assert (options["alpha"], options["beta"]) == alpha_beta[data]
            assert options["generator_lr"] == (1e-4 if data == "cifar100" else 3e-4)


def test_the_readme_can_be_typed():
    sweep = read_sweep(FOLDER / "table1.yaml")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", README.split("| axis |")[1], flags=re.MULTILINE))
    assert {axis: re.findall(r"`([^`]+)`", text) for axis, text in rows.items()} == {
        axis: list(choices) for axis, choices in sweep.axes.items()
    }
    found = [sweep_runs(sweep, only=only.split(","), seeds=[0]) for only in re.findall(r"--only (\S+)", README)]
    assert [len(runs) for runs in found] == [7, 1]
    (name,) = re.findall(r"`fedmr-merge run ([\w/-]+)`", README)
    assert find_ready_made(name).path.read_bytes() == (FOLDER / "authors" / "cnn-cifar10.yaml").read_bytes()
    for name in SWEEPS:
        assert f"`{name}.yaml`" in README
    (text,) = re.findall(r"`--set '([^`]+)'`", README)
    assert read_recipe(FOLDER / "cnn-cifar10.yaml", [text]).partition.name == "file"


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
        parse_recipe(run.recipe, run.name, Own(run.code_folders))


#: What is run of each sweep, and its rounds.
SMALL = {
    "table1": ("authors,cnn,cifar10,alpha=0.5", 2),
    "figure3": ("alpha=0.5", 5),
    "figure4": ("iid", 2),
    "figure5": ("alpha=0.1", 12),
    "overhead": ("cnn", 2),
    "lenet-cifar10": ("alpha=0.5", 5),
    "lenet-cifar10-hsu": ("alpha=0.5", 2),
    "lenet-cifar10-long": ("alpha=0.1", 2),
    "scaffold-momentum": ("alpha=0.5", 2),
}


@pytest.mark.parametrize(
    "name", [name if name == "figure4" else pytest.param(name, marks=pytest.mark.slow) for name in SWEEPS]
)
def test_a_small_version_of_a_sweep_runs_and_draws_the_page(tmp_path, name):
    only, rounds = SMALL[name]
    settings = [
        "data={name: digits, partition: {kind: dirichlet, alpha: 0.5, clients: 4}}",
        "model={name: cnn}",
        "training.clients_per_round=2",
        "training.local_epochs=1",
    ]
    changes = [word for setting in settings for word in ("--set", setting)]
    arguments = ["--only", only, "--seeds", "0", "--rounds", rounds, *changes, "-o", tmp_path / "out"]
    assert command("sweep", FOLDER / f"{name}.yaml", *arguments) == 0
    study = read_study([tmp_path / "out"])
    runs = sweep_runs(read_sweep(FOLDER / f"{name}.yaml"), only=only.split(","), seeds=[0])
    assert {tuple(found.choices.values()) for found in study.experiments} == {
        tuple(run.choices.values()) for run in runs
    }
    assert {len(run.metrics) for found in study.experiments for run in found.runs.values()} == {rounds}
    (preset,) = {found.preset for found in study.experiments}
    assert preset == runs[0].recipe["preset"]
    assert {row["preset"] for row in csv.DictReader(io.StringIO(comparison_csv(study)))} == {preset}
    assert command("report", tmp_path / "out", "-o", tmp_path / "page") == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert all(run.choices["method"] in page for run in runs)
    assert preset in html.unescape(page)


def test_table1_is_27_cells_of_7_methods_under_both_presets_with_the_papers_numbers():
    runs = sweep_runs(read_sweep(FOLDER / "table1.yaml"), seeds=[0])
    cells = {tuple(run.choices[axis] for axis in ("model", "dataset", "heterogeneity")) for run in runs}
    assert (len(cells), len(runs)) == (27, 2 * 27 * 7)
    in_table = {
        (IN_FILES[row["model"]], IN_FILES[row["dataset"]], row["heterogeneity"], row["method"])
        for row in csv.DictReader((FOLDER / "table1.csv").open())
    }
    assert in_table == {tuple(run.choices[axis] for axis in run.choices if axis != "preset") for run in runs}
