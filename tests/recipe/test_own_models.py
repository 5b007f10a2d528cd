"""A model of the user's own, by its import path in a recipe and from Python: trained, resumed, published and loaded."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_code
import pytest
import torch
from own_code import RECIPE, hashes, stop_after, write_project
from program import fedmr_merge
from small_run import command

from fedmr_merge import load_model, run_recipe
from fedmr_merge.errors import CheckpointError, FedmrMergeError, RecipeError, RunError
from fedmr_merge.recipe.own import Own
from fedmr_merge.recipe.run import Run
from fedmr_merge.recipe.schema import parse_recipe, read_recipe
from fedmr_merge.recipe.sweep_file import read_sweep, sweep_runs
from fedmr_merge.recipe.sweep_forecast import forecast
from fedmr_merge.recipe.sweep_plan import plan_tasks


@pytest.fixture(autouse=True)
def modules_are_forgotten() -> Iterator[None]:
    with own_code.forgetting():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose recipe was followed to its end, in `run/`; not to be changed."""
    project = tmp_path_factory.mktemp("project")
    recipe = write_project(project)
    with own_code.forgetting():
        assert command("run", recipe, "-o", project / "run") == 0
    return project


def small_net(project: Path) -> Any:
    namespace: dict[str, Any] = {"__name__": "notebook"}
    exec((project / "own_nets.py").read_text(), namespace)
    return namespace["SmallNet"]


def interrupt(recipe: Any, folder: Path, rounds: int) -> None:
    with Run(recipe, folder) as run:
        for event in run.execute():
            if getattr(event, "result", None) and event.result.round == rounds:
                return


def test_a_recipe_names_the_class_and_its_run_is_resumed_to_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    recipe = read_recipe(finished / "own.yaml", own=Own((finished,)))
    assert recipe.to_json()["model"] == {"name": "own_nets:SmallNet", "width": 4}
    config = json.loads((finished / "run" / "global" / "config.json").read_text())
    assert (config["architecture"], config["arch_args"]) == ("own_nets:SmallNet", {"width": 4})
    interrupt(recipe, tmp_path / "run", rounds=2)
    assert command("run", finished / "own.yaml", "-o", tmp_path / "run") == 0
    assert hashes(tmp_path / "run") == hashes(finished / "run")


def test_the_module_is_found_beside_the_recipe_from_any_folder_and_from_the_current_one(
    finished: Path, tmp_path: Path
) -> None:
    for where, what in ((tmp_path, finished / "own.yaml"), (finished, "run")):
        run = fedmr_merge("run", what, "--dry-run", cwd=where)
        assert run.returncode == 0, run.stderr
        assert "name: own_nets:SmallNet" in run.stdout


def test_from_python_the_same_class_gives_the_same_models(finished: Path, tmp_path: Path) -> None:
    net = small_net(finished)
    done = run_recipe(
        {key: value for key, value in RECIPE.items() if key != "model"},
        tmp_path / "run",
        model=lambda num_classes: net(num_classes, width=4),
    )
    assert done.rounds == 3
    found, expected = (load_model(run / "global", model=net_of(net)) for run in (tmp_path / "run", finished / "run"))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def net_of(net: Any) -> Any:
    def build(num_classes: int, width: int = 4) -> Any:
        return net(num_classes, width)

    return build


def test_a_run_with_a_given_model_is_resumed_with_it_to_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    net, recipe = small_net(finished), {**RECIPE, "model": {"name": "cnn"}}
    run_recipe(recipe, tmp_path / "whole", model=net)
    assert "name: python:SmallNet" in (tmp_path / "whole" / "recipe.yaml").read_text()

    stop_after(2, recipe, tmp_path / "run", model=net)
    assert run_recipe(tmp_path / "run", model=net).rounds == 3
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")


def test_a_run_is_not_resumed_with_another_model(finished: Path, tmp_path: Path) -> None:
    net = small_net(finished)
    recipe = {**RECIPE, "stages": [{"fedmr": {"rounds": 1}}]}
    run_recipe(recipe, tmp_path / "run", model=net)
    before = hashes(tmp_path / "run")
    other = type("SmallNet", (net,), {})
    other.__init__ = lambda self, num_classes, width=8: net.__init__(self, num_classes, 5)
    with pytest.raises(
        RunError, match=r"is not of the model python:SmallNet: conv.bias: float32 \[8\] in the "
    ) as found:
        run_recipe(recipe, tmp_path / "run", model=other)
    assert "conv.weight: float32 [8, 1, 3, 3] in the checkpoint, float32 [5, 1, 3, 3] in the model" in str(found.value)
    with pytest.raises(RunError, match=r"belongs to another recipe: model\.name: "):
        run_recipe(recipe, tmp_path / "run", model=lambda num_classes: net(num_classes))
    with pytest.raises(RecipeError, match=r"model\.name: python:SmallNet was given from Python, and has to be given"):
        run_recipe(tmp_path / "run")
    assert hashes(tmp_path / "run") == before


def test_code_that_was_changed_since_the_run_began_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_project(tmp_path)
    with own_code.forgetting():
        stop_after(2, recipe, tmp_path / "run")
    write_project(tmp_path, own_code.NETS + "\n# changed\n")
    assert command("run", recipe, "-o", tmp_path / "run") == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "not as when the run began" in line]
    assert re.search(r"code of own_nets:SmallNet: [0-9a-f]{16} → [0-9a-f]{16}; the bytes may differ", line)


BAD = [
    ("own_nets:Smallnet", "own_nets has no attribute 'Smallnet', did you mean SmallNet?"),
    ("own_netz:SmallNet", "model.name: there is no module 'own_netz' in "),
    ("own_nets:NotAModule", "model: own_nets:NotAModule is a class, but not one of torch.nn.Module"),
    ("own_nets:built", "model: own_nets:built is a module that is built already: name its class"),
    ("own_nets:value", "model: own_nets:value is of type int, not a class of torch.nn.Module or a function"),
    ("own_nets:nothing", "own_nets:nothing returned an object of type str, not a torch.nn.Module"),
    ("own_nets:empty", "model own_nets:empty has no parameters to train"),
    ("own_nets:lazy", "model own_nets:lazy has lazy layers"),
    ("own_nets:narrow", "model own_nets:narrow returned float32 [2, 7] for 2 examples"),
    (
        "own_nets:wrong_size",
        "model own_nets:wrong_size cannot take a batch of float32 [2, 1, 8, 8]: RuntimeError: mat1",
    ),
    ("own_nets:SmallNet, widht: 3", "model.widht: unknown option, did you mean width?"),
    ("own_nets:SmallNet, width: wide", 'model.width: should be a valid integer, found "wide"'),
    ("own_nets:SmallNet, width: -1", "own_nets:SmallNet failed: RuntimeError: "),
    ("own nets:SmallNet", "model.name: unknown name 'own nets:SmallNet'"),
]


@pytest.mark.parametrize(("model", "message"), BAD)
def test_bad_models_are_one_line_and_exit_code_2(
    model: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_project(tmp_path)
    name, comma, rest = model.partition(",")
    assert command("run", recipe, "--set", f"model={{name: '{name}'{comma}{rest}}}", "-o", tmp_path / "run") == 2
    error, *more = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert len(more) <= 1
    assert not (tmp_path / "run").exists()


def test_code_that_fails_is_one_line_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_project(tmp_path, "import torch\nprint(undefined)\n")
    assert command("run", recipe, "-o", tmp_path / "run") == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert (
        "model.name: importing own_nets failed: NameError: name 'undefined' is not defined (own_nets.py, line 2)"
        in error
    )


def test_a_published_model_asks_for_its_class_and_is_loaded_with_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    monkeypatch.syspath_prepend(finished)
    folder = finished / "run" / "global"
    with pytest.raises(CheckpointError, match="own_nets:SmallNet is a user's own code, which is never loaded") as found:
        load_model(folder)
    assert found.value.hint == "import SmallNet where you have it, and give it: load_model(…, model=SmallNet)"
    assert "own_nets" not in sys.modules, "no code is imported because a folder names it"

    net = small_net(finished)
    model = load_model(folder, model=net)
    assert (type(model), model.conv.out_channels, model.training) == (net, 4, False)
    assert model.label_names[model(model.preprocess(torch.zeros(1, 8, 8))).argmax()] in "0123456789"
    module = net(10, width=4)
    untouched = module.conv.weight.clone()
    copied = load_model(folder, model=module)
    assert torch.equal(copied.conv.weight, model.conv.weight)
    assert torch.equal(module.conv.weight, untouched)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda num_classes: torch.nn.Linear(64, num_classes), "its arch_args do not fit the model that was given: "),
        (lambda num_classes, width: torch.nn.Linear(64, num_classes), "does not fit the weights: bias: [10] by the "),
        (lambda width: 5, "cannot be built as it says: model returned an object of type int, not a torch.nn.Module"),
        ("own_nets:SmallNet", "is of type str, not a class of torch.nn.Module or a function"),
    ],
)
def test_models_that_do_not_fit_what_was_published(finished: Path, model: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as found:
        load_model(finished / "run" / "global", model=model)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_the_card_says_that_the_class_is_needed(finished: Path) -> None:
    card = (finished / "run" / "global" / "README.md").read_text()
    assert "from own_nets import SmallNet  # the code of this model, which does not come with it" in card
    assert 'load_model("ORG/NAME", model=SmallNet)' in card


def test_commands_that_read_a_run_need_no_code(finished: Path, tmp_path: Path) -> None:
    run = finished / "run"
    assert command("compare", run) == 0
    assert command("report", run, "-o", tmp_path / "report") == 0
    assert command("card", run / "global") == 0
    assert command("push", run / "global", "ORG/NAME", "--dry-run") == 0
    assert "own_nets" not in sys.modules
    published = read_yaml(run / "global" / "recipe.yaml")
    assert published["model"] == {"name": "own_nets:SmallNet", "width": 4}
    assert parse_recipe(published, "published", Own(imported=False)).to_json()["model"] == published["model"]


def read_yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text())


def test_a_sweep_finds_modules_beside_its_recipe_beside_itself_and_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path / "recipes")
    sweep = {"name": "widths", "recipe": "recipes/own.yaml", "axes": {"model.width": [3, 4]}}
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))

    def widths() -> list[object]:
        sys.modules.pop("own_nets", None)
        return [task.recipe.model.options() for task in plan_tasks(sweep_runs(read_sweep(tmp_path / "sweep.yaml")))]

    assert widths() == [{"width": 3}, {"width": 4}]
    module = tmp_path / "recipes" / "own_nets.py"
    module = module.rename(tmp_path / "own_nets.py")
    assert widths() == [{"width": 3}, {"width": 4}]
    (tmp_path / "elsewhere").mkdir()
    module.rename(tmp_path / "elsewhere" / "own_nets.py")
    with pytest.raises(FedmrMergeError, match=r"there is no module 'own_nets' in .*, or among installed packages"):
        widths()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert widths() == [{"width": 3}, {"width": 4}]
    assert [cost.rounds for cost in forecast(sweep_runs(read_sweep(tmp_path / "sweep.yaml")), budget_seconds=0)]


def test_a_sweep_runs_with_modules_beside_it_from_anywhere(tmp_path: Path) -> None:
    write_project(tmp_path)
    sweep = {"name": "widths", "recipe": "own.yaml", "axes": {"model.width": [3]}}
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))
    assert command("sweep", tmp_path / "sweep.yaml", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "runs" / "width3_seed0" / "global").is_dir()


def test_recipes_of_two_folders_with_modules_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    one, two = (write_project(tmp_path / name) for name in ("one", "two"))
    read_recipe(one, own=Own((one.parent,)))
    with pytest.raises(FedmrMergeError, match=r"a module 'own_nets' is loaded already, from .*/one/own_nets\.py, "):
        read_recipe(two, own=Own((two.parent,)))
