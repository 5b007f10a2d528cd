"""Sweep files: which runs they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedmr_merge.errors import RecipeError
from fedmr_merge.recipe.sweep_file import named_choices, read_sweep, sweep_runs

BASE = {
    "name": "base",
    "data": {"name": "digits", "partition": {"kind": "dirichlet", "alpha": 0.5, "clients": 4}},
    "model": {"name": "cnn"},
    "training": {"clients_per_round": 2},
    "stages": [{"fedavg": {"rounds": 2}}, {"fedmr": {"rounds": 8}}],
}
SWEEP = {
    "recipe": "base.yaml",
    "seeds": [3, 4],
    "axes": {
        "data.partition.alpha": [0.1, 1.0],
        "method": {"FedAvg": {"stages": [{"fedavg": {"rounds": 10}}]}, "two stages": {}},
    },
}


def write(folder: Path, **changes: object) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "other-FedAvg.yaml").write_text(yaml.safe_dump({**BASE, "model": {"name": "lenet"}}))
    (folder / "small.yaml").write_text(yaml.safe_dump({**SWEEP, **changes}, sort_keys=False))
    return folder / "small.yaml"


def test_a_sweep_is_every_combination_seed_by_seed(tmp_path: Path) -> None:
    runs = sweep_runs(read_sweep(write(tmp_path)))
    assert [run.name for run in runs] == [
        f"alpha{alpha}_{method}_seed{seed}"
        for seed in (3, 4)
        for alpha in (0.1, 1.0)
        for method in ("FedAvg", "two-stages")
    ]
    last = runs[-1]
    assert last.choices == {"alpha": "alpha=1.0", "method": "two stages"}
    assert last.recipe["data"]["partition"]["alpha"] == 1.0
    assert last.recipe["stages"] == BASE["stages"]
    assert last.recipe["seed"] == 4
    assert runs[0].recipe["stages"] == [{"fedavg": {"rounds": 10}}]


def test_no_folder_has_a_name_that_is_hidden_or_looks_like_an_option(tmp_path: Path) -> None:
    axes = {"method": {"-momentum": {}, "..": {}}}
    runs = sweep_runs(read_sweep(write(tmp_path, axes=axes)), seeds=[0, 0])
    assert [run.name for run in runs] == ["momentum_seed0", "small_seed0"]


def test_the_order_of_settings_is_base_command_line_choices_when(tmp_path: Path) -> None:
    when = [{"if": {"method": "FedAvg"}, "set": {"training.lr": 0.3}}]
    definition = read_sweep(write(tmp_path, when=when))
    for run in sweep_runs(definition, settings=[("training.lr", 0.2), ("data.partition.alpha", 9.0)]):
        assert run.recipe["training"]["lr"] == (0.3 if run.choices["method"] == "FedAvg" else 0.2)
        assert run.recipe["data"]["partition"]["alpha"] == float(run.choices["alpha"].removeprefix("alpha="))


def test_only_keeps_the_named_choices_of_their_axes(tmp_path: Path) -> None:
    definition = read_sweep(write(tmp_path))
    assert {run.name for run in sweep_runs(definition, only=["alpha=0.1"], seeds=[7])} == {
        "alpha0.1_FedAvg_seed7",
        "alpha0.1_two-stages_seed7",
    }
    with pytest.raises(RecipeError, match=r"unknown choice 'alpha=0.11', did you mean alpha=0.1\?"):
        sweep_runs(definition, only=["alpha=0.11"])


def test_what_is_excluded_is_not_run(tmp_path: Path) -> None:
    definition = read_sweep(write(tmp_path, exclude=[{"alpha": "alpha=0.1", "method": "FedAvg"}]))
    assert {tuple(run.choices.values()) for run in sweep_runs(definition)} == {
        ("alpha=0.1", "two stages"),
        ("alpha=1.0", "FedAvg"),
        ("alpha=1.0", "two stages"),
    }
    with pytest.raises(RecipeError) as caught:
        sweep_runs(read_sweep(write(tmp_path, exclude=[{"method": "FedAvg"}])), only=["FedAvg"])
    assert "leave no run" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("rounds", "expected"), [(10, [2, 8]), (5, [1, 4]), (2, [1, 1]), (1, [1, 1]), (1000, [200, 800])]
)
def test_rounds_keep_the_shares_of_the_stages(rounds: int, expected: list[int], tmp_path: Path) -> None:
    runs = sweep_runs(read_sweep(write(tmp_path)), only=["two stages"], rounds=rounds)
    for run in runs:
        assert [stage[name]["rounds"] for stage in run.recipe["stages"] for name in stage] == expected


def test_a_choice_may_bring_a_recipe_of_its_own(tmp_path: Path) -> None:
    axes = {"model": {"plain": {}, "other": {"recipe": "other-{method}.yaml"}}, "method": {"FedAvg": {}}}
    runs = sweep_runs(read_sweep(write(tmp_path, axes=axes)))
    assert [run.recipe["model"]["name"] for run in runs] == ["cnn", "lenet"] * 2


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("a", ["a"]),
        ("b,a, c", ["b", "a", "c"]),
        ("a, then b,c", ["a, then b", "c"]),
        ("a, then b, then c", ["a, then b, then c"]),
        ("a, then d", ["a", "then d"]),
        ("", [""]),
    ],
)
def test_names_with_commas_can_be_chosen(tmp_path: Path, text: str, choices: list[str]) -> None:
    axes = {"method": {name: {} for name in ("a", "b", "c", "a, then b", "a, then b, then c")}}
    assert named_choices(read_sweep(write(tmp_path, axes=axes)), text) == choices


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": 5}, "recipe: expected the path of a recipe"),
        ({"axis": {}}, "unknown key of a sweep file, did you mean axes?"),
        ({"seeds": [-1]}, "seeds[0]"),
        ({"seeds": []}, "seeds"),
        ({"axes": {"method": {}}}, "axes.method: has no choices"),
        ({"axes": {"a": {"x": {}}, "b": {"x": {}}}}, "the axis a has a choice of this name, too"),
        ({"axes": {"training.lr": [1, 2], "stages[0].fedmr.lr": [3]}}, "another axis is called 'lr': give this one"),
        ({"axes": {"method": {"a (1)": {}, "a [1]": {}}}}, "'a (1)' and 'a [1]' would have the same folder"),
        ({"axes": {"method": {"α": {}, "β": {}}}}, "'α' and 'β' would have the same folder"),
        ({"when": [{"if": {"method": "FedAgv"}, "set": {}}]}, "unknown choice 'FedAgv', did you mean FedAvg?"),
        ({"exclude": [{"method": ["FedAvg"]}]}, "exclude[0].method: expected the name of a choice, found"),
        ({"exclude": [{"methods": "FedAvg"}]}, "unknown axis, did you mean method?"),
    ],
)
def test_every_fault_is_reported_with_its_place(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read_sweep(write(tmp_path, **changes))
    assert message in str(caught.value)
