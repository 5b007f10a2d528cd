"""Comparison of runs, on metrics that are written by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure
from small_run import RECIPE, command, write_run

from fedmr_merge.errors import RunError
from fedmr_merge.hub.inputs import public_model_name
from fedmr_merge.report.comparison import comparison_csv, comparison_table, draw_comparison
from fedmr_merge.report.study import read_study


def table(*folders: Path, target: float | None = None) -> list[dict[str, str]]:
    columns, rows = comparison_table(read_study(folders), target)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / str(s), 0.1, 0.5 + 0.1 * s, 0.4 + 0.1 * s, seed=s) for s in (0, 1)]
    [row] = table(*folders)
    deviation = f"{100 * 0.1 / math.sqrt(2):.2f}"
    assert row == {
        "run": "small",
        "method": "fedmr",
        "data": "digits",
        "model": "cnn",
        "seeds": "2",
        "rounds": "3",
        "last 10 rounds, %": f"36.67 ± {100 * 0.2 / 3 / math.sqrt(2):.2f}",
        "last round, %": f"45.00 ± {deviation}",
        "best round, %": f"55.00 ± {deviation}",
    }


def test_of_one_run_no_deviation_is_told(tmp_path: Path) -> None:
    [row] = table(write_run(tmp_path / "a", 0.25, 0.5))
    assert row["last round, %"] == "50.00"


def test_the_numbers_for_programs_name_no_folder_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    run = write_run(tmp_path / "a", 0.5, model={"name": f"transformers:{tmp_path / 'bert'}"})
    [row] = csv.DictReader(comparison_csv(read_study([run])).splitlines())
    assert row["model"] == "transformers:bert"
    assert public_model_name("transformers:somebody/bert") == "transformers:somebody/bert"
    assert public_model_name("torchvision:resnet18") == "torchvision:resnet18"


def test_what_is_technical_makes_no_other_experiment(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", 0.5, seed=0, training={"device": "cpu", "threads": 2})
    b = write_run(tmp_path / "b", 0.5, seed=1, training={"checkpoint_every": 2, "engine": "vmap"})
    assert [row["seeds"] for row in table(a, b)] == ["2"]


def test_experiments_are_told_apart_by_the_options_that_differ(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / str(lr), 0.5, training=RECIPE["training"] | {"lr": lr}) for lr in (0.01, 0.1)]
    average = write_run(tmp_path / "avg", 0.5, name="avg", stages=[{"fedavg": {"rounds": 4}}, {"publish": {}}])
    rows = table(*folders, average)
    assert [row["options"] for row in rows[:2]] == ["training.lr=0.01", "training.lr=0.1"]
    assert [row["method"] for row in rows] == ["fedmr", "fedmr", "fedavg"]
    assert "stages" not in rows[2]["options"], "another method has other options"


def test_rounds_to_a_target_are_those_of_the_runs_that_reach_it(tmp_path: Path) -> None:
    name = "rounds to 50 %"
    a = write_run(tmp_path / "a", 0.1, 0.5, 0.4, seed=0)
    b = write_run(tmp_path / "b", 0.1, 0.2, 0.3, 0.9, seed=1)
    c = write_run(tmp_path / "c", 0.1, 0.2, 0.3, seed=2)
    assert table(a, b, target=0.5)[0][name] == f"3.0 ± {math.sqrt(2):.1f}"
    assert table(a, b, c, target=0.5)[0][name] == f"3.0 ± {math.sqrt(2):.1f} (2 of 3 runs)"
    assert table(c, target=0.5)[0][name] == "not reached"
    assert table(a, b, target=0.5)[0]["rounds"] == "3-4"


def test_a_run_that_comes_twice_is_refused(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", 0.5), write_run(tmp_path / "b", 0.5)
    with pytest.raises(RunError, match="are the same recipe with the same seed, 3"):
        read_study([a, b])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"is not a run folder: recipe\.yaml: No such file"),
        ({"recipe.yaml": "[]", "metrics.jsonl": ""}, r"recipe\.yaml: damaged: Input should be"),
        ({"recipe.yaml": "a: [", "metrics.jsonl": ""}, r"recipe\.yaml: damaged: not YAML"),
        ({"metrics.jsonl": ""}, "has no round yet"),
        ({"metrics.jsonl": "{"}, "has no round yet"),
        ({"metrics.jsonl": "{\n"}, r"metrics\.jsonl: damaged: line 1: not JSON"),
    ],
)
def test_what_is_no_run(tmp_path: Path, files: dict[str, str], message: str) -> None:
    folder = tmp_path / "run"
    if files:
        write_run(folder)
    else:
        folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(RunError, match=message) as caught:
        read_study([folder])
    assert caught.value.hint


def test_a_killed_run_is_compared_by_the_rounds_that_it_finished(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 0.25, 0.5)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"round": 3, "stage": 1, "meth')
    [row] = table(folder)
    assert (row["rounds"], row["last round, %"]) == ("2", "50.00")


def test_the_axis_shows_the_last_rounds_of_every_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[float, float]] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: limits.append(figure.axes[0].get_ylim()))
    high = write_run(tmp_path / "high", *[0.5] * 4, *[0.96] * 4)
    low = write_run(tmp_path / "low", *[0.1] * 4, *[0.9] * 4, name="low")
    for folders in ([high], [high, low]):
        draw_comparison(read_study(folders), tmp_path / "curves.png")
    assert limits == [(90, 100), (80, 100)]


def test_the_command_writes_table_numbers_and_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write_run(tmp_path / str(s), 0.25, 0.5, seed=s) for s in (0, 1)]
    assert command("compare", *folders, "--target", 0.5, "-o", tmp_path / "out") == 0
    assert "50.00 ± 0.00" in capsys.readouterr().out
    header, line, row = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert header.count("|") == line.count("|") == row.count("|")
    with (tmp_path / "out" / "runs.csv").open() as stream:
        runs = list(csv.DictReader(stream))
    assert [(run["seed"], run["last"], run["best_round"]) for run in runs] == [("0", "0.5", "2"), ("1", "0.5", "2")]
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert command("compare", *folders, "-o", tmp_path / "out") == 2
    assert "exists already" in capsys.readouterr().err


def test_what_a_publish_stage_wrote_is_the_same_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 0.5, data=RECIPE["data"])
    published = yaml.safe_load((run / "recipe.yaml").read_text())
    other = write_run(tmp_path / "other", 0.5)
    (other / "recipe.yaml").write_text(yaml.safe_dump(published | {"stages": [*published["stages"], {"publish": {}}]}))
    with pytest.raises(RunError, match="same recipe"):
        read_study([run, other])
