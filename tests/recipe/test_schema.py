"""Recipes: what is right becomes values, what is wrong is told all at once."""

from pathlib import Path
from typing import Any

import pytest

from fedmr_merge.errors import RecipeError
from fedmr_merge.recipe.schema import parse_recipe, read_recipe
from fedmr_merge.recipe.stages import Evaluate, Publish, TrainingStage
from fedmr_merge.recipe.text import apply_setting, parse_yaml

ROOT = Path(__file__).parents[2]


def small(**changes: Any) -> dict[str, Any]:
    recipe = {
        "name": "small",
        "data": {"name": "digits", "partition": {"kind": "iid", "clients": 4}},
        "model": {"name": "cnn"},
        "stages": [{"fedavg": {"rounds": 2}}, {"evaluate": {}}],
    }
    return recipe | changes


def faults(raw: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(raw, "small.yaml")
    return [str(fault) for fault in caught.value.faults]


def test_the_digits_recipe() -> None:
    recipe = read_recipe(ROOT / "recipes" / "digits.yaml")
    assert recipe.name == "digits"
    assert recipe.partition.options()["alpha"] == 0.5
    first, second, *others = recipe.stages
    assert isinstance(first, TrainingStage)
    assert (first.name, first.length.rounds) == ("fedavg", 10)
    assert isinstance(second, TrainingStage)
    assert second.method.options()["rule"] == "layer"
    assert [type(stage) for stage in others] == [Evaluate, Publish]
    assert recipe.rounds == first.length.rounds + second.length.rounds


RECIPES = [path for path in sorted((ROOT / "recipes").rglob("*.yaml")) if "\nrecipe: " not in path.read_text()]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_right(path: Path) -> None:
    recipe = read_recipe(path)
    again = parse_recipe(parse_yaml(recipe.to_yaml(), "resolved"), "resolved")
    assert again.to_yaml() == recipe.to_yaml(), "a resolved recipe resolves to itself"


def test_defaults_are_spelled_out() -> None:
    resolved = parse_recipe(small(), "small.yaml").to_json()
    assert resolved["seed"] == 0
    assert resolved["training"]["lr"] == 0.01
    assert resolved["training"]["device"] == "auto"
    assert resolved["data"]["partition"] == {"kind": "iid", "clients": 4}


def test_all_faults_come_at_once_each_with_its_path() -> None:
    raw = small(
        sed=1,
        name="a b",
        training={"lr": -1, "momentun": 0.9, "device": "gpu", "batch_size": "50"},
        data={"name": "digts", "partition": {"kind": "dirichlet", "alfa": 0.5}},
        stages=[{"fedmr": {"rounds": 0, "rul": "layer"}}, {"fedagv": {"rounds": 1}}, {"fedavg": {}}, "evaluate"],
    )
    found = faults(raw)
    expected = [
        "sed: unknown option, did you mean seed?",
        "name: expected at most 200 letters",
        "training.lr: should be greater than 0",
        "training.momentun: unknown option, did you mean momentum?",
        "training.device: should be 'auto', 'cpu' or 'cuda'",
        "training.batch_size: should be a valid integer",
        "data.name: unknown name 'digts', did you mean digits?",
        "data.partition.alfa: unknown option, known are alpha, clients",
        "stages[0].fedmr.rounds: should be greater than or equal to 1",
        "stages[0].fedmr.rul: unknown option, did you mean rule?",
        "stages[1].fedagv: unknown stage, did you mean fedavg?",
        "stages[2].fedavg.rounds: is missing",
        "stages[3]: a stage is one name with its options",
    ]
    for text in expected:
        assert any(fault.startswith(text) for fault in found), f"{text!r} is not among {found}"
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ([], "expected a mapping of options"),
        (None, "name: is missing"),
        (small(stages=[{"evaluate": {}}, {"fedavg": {"rounds": 1}}]), "stages[0].evaluate: no training stage"),
        (small(stages=[]), "stages: expected a list of stages"),
        (small(seed=-1), "seed: expected a whole number"),
        (small(seed=True), "seed: expected a whole number"),
        (small(data={"name": "digits"}), "data.partition.kind: is missing"),
        (small(model="cnn"), "model: expected a mapping of options"),
        (small(training={"lr": float("nan")}), "training.lr: "),
        (small(preset="two\nlines"), "preset: expected a line of at most 500 characters"),
        (small(preset=5), "preset: expected a line"),
        (small(training={"keep": "best"}), "training.keep: is an option of a stage: write it as in stages[0].fedavg."),
        (small(stages=[{"fedavg": {"rounds": 1}, "fedmr": {"rounds": 1}}]), "stages[0]: a stage is one name"),
    ],
)
def test_single_faults(raw: Any, fault: str) -> None:
    assert any(found.startswith(fault) for found in faults(raw)), faults(raw)


def test_yaml_as_people_write_it(tmp_path: Path) -> None:
    assert parse_yaml("lr: 1e-3", "x") == {"lr": 0.001}
    with pytest.raises(RecipeError, match=r"line 2: the key 'lr' stands here twice"):
        parse_yaml("lr: 1\nlr: 2", "x")
    with pytest.raises(RecipeError, match="line 1"):
        parse_yaml("a: [", "x")
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_recipe(tmp_path / "absent.yaml")


def test_no_python_object_is_made_from_yaml() -> None:
    with pytest.raises(RecipeError, match="could not determine a constructor"):
        parse_yaml("!!python/object/apply:os.getcwd []", "x")


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("training.lr=0.05", ("training", "lr"), 0.05),
        ("training.lr=1e-2", ("training", "lr"), 0.01),
        ("stages[0].fedavg.rounds=7", ("stages", 0, "fedavg", "rounds"), 7),
        ("stages.0.fedavg.rounds=7", ("stages", 0, "fedavg", "rounds"), 7),
        ("name=other", ("name",), "other"),
    ],
)
def test_settings(setting: str, path: tuple[Any, ...], value: Any) -> None:
    raw: Any = small()
    apply_setting(raw, setting)
    for key in path:
        raw = raw[key]
    assert raw == value


def test_settings_reach_empty_options_and_names_with_dots() -> None:
    raw: Any = small(training=None, stages=[{"nets.own:Mine": {"rounds": 2}}, {"publish": None}])
    for setting in ("training.privacy.clip=1", "stages[0].nets.own:Mine.rounds=5", "stages[1].publish.repo=a/b"):
        apply_setting(raw, setting)
    assert raw["training"] == {"privacy": {"clip": 1}}
    assert raw["stages"] == [{"nets.own:Mine": {"rounds": 5}}, {"publish": {"repo": "a/b"}}]


@pytest.mark.parametrize("setting", ["training.lr", "=1", "[.]=1", "stages[9].fedavg.rounds=1", "name.first=x"])
def test_settings_that_lead_nowhere(setting: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        apply_setting(small(), setting)


def test_a_name_is_short_enough_for_a_folder() -> None:
    assert len(parse_recipe(small(name="x" * 200), "small.yaml").name) == 200
    [fault] = faults(small(name="x" * 201))
    assert fault.startswith("name: expected at most 200 letters")
    assert len(fault) < 200, "it shortens what it quotes"
