"""`recipes`, `list` and `docs`, and the names that `run` takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmr_merge.errors import RecipeError
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.option_docs import describe_options
from fedmr_merge.recipe.ready_made import locate_recipe, ready_made_recipes

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


def test_recipes_are_listed_with_their_first_line(run: Run) -> None:
    code, out, _ = run("recipes")
    assert code == 0
    assert re.search(r"^digits +recipe +Federated training on real data", out, re.MULTILINE)
    assert re.search(r"^paper/table1 +sweep +", out, re.MULTILINE)
    assert all(recipe.summary for recipe in ready_made_recipes())


def test_a_recipe_is_shown_and_copied_and_nothing_is_overwritten(run: Run, tmp_path: Path) -> None:
    digits = (ROOT / "recipes" / "digits.yaml").read_text()
    assert run("recipes", "show", "digits")[1] == digits
    code, out, _ = run("recipes", "copy", "digits", "-o", "my recipe.yaml")
    assert code == 0
    assert (tmp_path / "my recipe.yaml").read_text() == digits
    assert out.splitlines()[-1] == "next: fedmr-merge run 'my recipe.yaml' --dry-run"
    code, _, errors = run("recipes", "copy", "digits", "-o", "my recipe.yaml")
    assert code == 2
    assert "exists already" in errors
    code, _, errors = run("recipes", "show", "digit")
    assert code == 2
    assert errors.splitlines()[1] == "hint: `fedmr-merge recipes` lists the names"


def test_the_page_about_the_papers_recipes_is_shown(run: Run) -> None:
    page = (ROOT / "recipes" / "paper" / "README.md").read_text()
    assert run("recipes", "show", "paper/README")[1] == page
    for path in (ROOT / "recipes").rglob("*.yaml"):
        text = path.read_text()
        assert not re.search(r"recipes/\w", text), f"{path} names a path that an installed package does not have"
        for name in re.findall(r"fedmr-merge (?:run|sweep) ([\w/-]+)", text):
            assert (ROOT / "recipes" / f"{name}.yaml").samefile(path)


def test_sweeps_are_run_by_name_and_copied_with_the_recipes_beside_them(run: Run, tmp_path: Path) -> None:
    arguments = ("--only", "cnn,cifar10,alpha=0.1,FedMR,paper", "--seeds", "0", "--dry-run")
    code, out, _ = run("sweep", "paper/table1", *arguments)
    assert code == 0
    code, _, errors = run("recipes", "copy", "paper/table1")
    assert code == 2
    assert errors.splitlines()[1] == "hint: `fedmr-merge recipes copy paper` copies the folder"
    code, _, errors = run("recipes", "copy", "digits-methods")
    assert code == 2
    assert errors.splitlines()[1] == "hint: `fedmr-merge sweep digits-methods` runs it by its name"
    assert run("recipes", "copy", "paper", "-o", "mine")[0] == 0
    assert (tmp_path / "mine" / "authors" / "cnn-cifar10.yaml").is_file()
    assert run("sweep", "mine/table1.yaml", *arguments)[:2] == (0, out)
    assert run("recipes", "copy", "paper", "-o", "mine")[0] == 2


def test_a_path_wins_over_a_name_and_a_run_folder_has_its_own_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "paper/cnn-cifar10"):  # which lie in the checkout or in the installed package
        assert locate_recipe(name).path.read_bytes() == (ROOT / "recipes" / f"{name}.yaml").read_bytes()
    Path("digits").mkdir()
    assert locate_recipe("digits").path.name == "digits.yaml"
    Path("digits").rmdir()
    Path("digits").write_text("name: mine")
    assert locate_recipe("digits").path == Path("digits")
    Path("runs/a").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"runs/a: is a folder without a recipe\.yaml"):
        locate_recipe("runs/a")
    Path("runs/a/recipe.yaml").write_text("name: a")
    found = locate_recipe("runs/a")
    assert (found.path, found.run_folder) == (Path("runs/a/recipe.yaml"), Path("runs/a"))
    with pytest.raises(RecipeError, match="nonsense: is neither a file"):
        locate_recipe("nonsense")


def test_run_takes_a_name(run: Run) -> None:
    code, out, errors = run("run", "digits", "--dry-run", "-o", "elsewhere")
    assert (code, errors) == (0, "")
    assert out.startswith("name: digits\n")
    assert out.endswith("dry run: nothing was written to elsewhere\n")


def test_a_name_that_is_nearly_one_is_answered_with_that_one(run: Run) -> None:
    for command, right in (
        (("run", "digit"), "digits"),
        (("sweep", "digits-method"), "digits-methods"),
        (("recipes", "copy", "paper/tabel1"), "paper/table1"),
    ):
        code, _, errors = run(*command)
        assert code == 2
        assert errors.splitlines()[0].endswith(f"comes with fedmr-merge, did you mean {right}?")
    assert "did you mean" not in run("run", "nonsense")[2]


def test_a_recipe_is_not_taken_for_a_sweep_nor_the_other_way_around(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my recipe.yaml").write_bytes((ROOT / "recipes" / "digits.yaml").read_bytes())
    (tmp_path / "sweep.yaml").write_text("recipe: my recipe.yaml\nseeds: [1, 2]\n")
    for arguments, words, hint in (
        (("sweep", "digits"), "digits: is a recipe, not a sweep", "`fedmr-merge run digits` runs it"),
        (("sweep", "my recipe.yaml"), "my recipe.yaml: is a recipe, not", "`fedmr-merge run 'my recipe.yaml'` runs it"),
        (("run", "digits-methods"), "digits-methods: is a sweep, not a recipe", "`fedmr-merge sweep digits-methods`"),
        (
            ("partition", "sweep.yaml"),
            "sweep.yaml: is a sweep, not a recipe",
            "`fedmr-merge sweep sweep.yaml` does its",
        ),
    ):
        code, out, errors = run(*arguments)
        assert (code, out) == (2, "")
        [error, advice] = errors.splitlines()
        assert error.startswith(f"error: {words}")
        assert advice.startswith(f"hint: {hint}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my recipe.yaml", "sweep.yaml"]
    assert run("sweep", "sweep.yaml", "--dry-run")[0] == 0


def test_an_unknown_method_is_answered_with_the_list(run: Run) -> None:
    code, _, errors = run("run", "digits", "--set", "stages=[{feddyn: {rounds: 1}}]")
    assert code == 2
    assert "stages[0].feddyn: unknown stage, known are clusamp, evaluate, fedavg, " in errors
    assert all(name in errors for name in ALGORITHMS.names())


def test_every_plugin_is_listed_with_its_options(run: Run) -> None:
    code, out, _ = run("list", "methods")
    assert code == 0
    for name in ALGORITHMS.names():
        assert f"\n  {name}: " in out
    assert re.search(r"^      probability: float ≥ 0, ≤ 1 \[1\.0\]  \w", out, re.MULTILINE)
    options = {option.name: option for option in describe_options(ALGORITHMS.find("fedmr"))}
    assert (options["rule"].type, options["rule"].default) == ("string", "layer")
    whole = run("list")[1]
    for title, example in (
        ("stages", "METHOD"),
        ("training", "training.privacy"),
        ("models", "cnn"),
        ("data", "hub:ORG/NAME"),
        ("partitions", "dirichlet"),
        ("deployment", "deployment"),
        ("rules", "layer"),
    ):
        assert re.search(rf"^{title}:$", whole, re.MULTILINE)
        assert f"\n  {example}: " in whole


def test_the_schema_is_json(run: Run) -> None:
    assert json.loads(run("recipes", "schema")[1])["title"] == "A recipe of fedmr-merge"


def test_pages_are_shown_by_name(run: Run) -> None:
    listed = [line.partition(": ")[0] for line in run("docs")[1].splitlines()]
    assert listed == [*sorted(path.stem for path in (ROOT / "docs").glob("*.md")), "reference"]
    for name in ("recombine", "docs/recombine.md"):
        shown = run("docs", name)[1]
        page = (ROOT / "docs" / "recombine.md").read_text()
        assert "<!-- file: rules.yaml -->" in page  # for the tests, which run the page
        assert shown == page.replace("<!-- file: rules.yaml -->\n", "").rstrip() + "\n"
    assert "| `mu` | float ≥ 0 | `0.01` | " in run("docs", "reference")[1]
    code, _, errors = run("docs", "nonsense")
    assert code == 2
    assert "the pages are " in errors


def test_no_message_points_to_a_file_that_its_user_does_not_have() -> None:
    for path in (ROOT / "fedmr_merge").rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not re.search(r"hint.*\bdocs/\w+\.md|\"docs/\w+\.md", line), f"{path.name}:{number}"
    pages = {path.stem for path in (ROOT / "docs").rglob("*.md")} | {"reference"}
    for path in (ROOT / "fedmr_merge").rglob("*.py"):
        for name in re.findall(r"`fedmr-merge docs (\w+)`", path.read_text(encoding="utf-8")):
            assert name in pages, f"{path.name} names the page {name}"
