"""Runs of every task from a recipe to a published model: what is recorded, compared, written on the card and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import command

from fedmr_merge import load_model, run_recipe
from fedmr_merge.errors import CheckpointError, FedmrMergeError
from fedmr_merge.recipe.prepare import prepare
from fedmr_merge.recipe.run import Run
from fedmr_merge.recipe.schema import parse_recipe

SMALL = {"width": 8, "depth": 1, "heads": 2}
TASKS = ("tabular-classification", "regression", "text-classification", "causal-lm")
METRICS = {
    "tabular-classification": "accuracy",
    "regression": "rmse",
    "text-classification": "accuracy",
    "causal-lm": "perplexity",
}


def recipe_of(task: str, folder: Path, **changes: Any) -> dict[str, Any]:
    texts: dict[str, Any] = {"name": "text", "path": str(folder), "length": 16, "client_column": "who"}
    data: dict[str, dict[str, Any]] = {
        "tabular-classification": {"name": "breast-cancer"},
        "regression": {"name": "diabetes"},
        "text-classification": texts | {"label_column": "label"},
        "causal-lm": texts,
    }
    model = {
        "tabular-classification": {"name": "mlp", "hidden": [8]},
        "regression": {"name": "mlp", "hidden": [8]},
        "text-classification": {"name": "text-classifier", **SMALL},
        "causal-lm": {"name": "gpt", **SMALL},
    }
    kind = {"kind": "natural"} if data[task] is not texts and "path" in data[task] else {"kind": "iid", "clients": 4}
    return {
        "name": task,
        "data": data[task] | {"partition": kind},
        "model": model[task],
        "training": {"clients_per_round": 3, "local_epochs": 1, "batch_size": 16, "lr": 0.02},
        "stages": [
            {"fedavg": {"rounds": 1}},
            {"fedmr": {"rounds": 2}},
            {"evaluate": {}},
            {"publish": {"what": "both"}},
        ],
    } | changes


def write_texts(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    words = (("sun", "warm", "sea"), ("snow", "cold", "ice"))
    for split, count in (("train", 60), ("test", 20)):
        rows = [
            {"text": " ".join(rng.choice(words[i % 2], size=rng.integers(1, 4))), "label": i % 2, "who": f"w{i % 4}"}
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    texts = write_texts(tmp_path_factory.mktemp("texts"))
    root = tmp_path_factory.mktemp("runs")
    return {task: run_recipe(recipe_of(task, texts), root / task).folder for task in TASKS}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("task", TASKS)
class TestRun:
    """Of one task."""

    def test_its_metrics_are_recorded_and_the_folder_says_which_decides(self, runs, task):
        described = json.loads((runs[task] / "task.json").read_text())
        assert described["name"] == task
        assert described["metrics"][0]["name"] == METRICS[task]
        for line in lines(runs[task] / "metrics.jsonl"):
            assert {f"test_{metric['name']}" for metric in described["metrics"]} <= line.keys()
        evaluation = json.loads((runs[task] / "evaluation.json").read_text())
        assert evaluation[METRICS[task]] == lines(runs[task] / "metrics.jsonl")[-1][f"test_{METRICS[task]}"]
        assert ("confusion" in evaluation) == (METRICS[task] == "accuracy")

    def test_the_card_is_about_the_task(self, runs, task):
        card = (runs[task] / "global" / "README.md").read_text()
        tag = {"regression": "tabular-regression", "causal-lm": "text-generation"}.get(task, task)
        assert f"pipeline_tag: {tag}\n" in card
        assert f"Test {METRICS[task]} of the global model, round by round" in card
        assert "**Its test " + METRICS[task] in card
        assert "images" not in card
        assert "from PIL" not in card

    def test_what_is_published_says_how_to_run_it_again(self, runs, task):
        published = _recipe(runs[task] / "global")
        assert parse_recipe(published, "recipe.yaml").task.name == task
        path = published["data"].get("path")
        assert path is None or "/" not in path
        again = "fedmr-merge run recipe.yaml" + (" --set data.path=FOLDER" if path else "")
        assert f"\n{again}\n" in (runs[task] / "global" / "README.md").read_text()
        assert (path is not None) == (published["data"]["name"] == "text")

    def test_what_is_published_loads_and_predicts_the_same(self, runs, task):
        recipe = parse_recipe(json.loads(json.dumps(_recipe(runs[task]))), "recipe.yaml")
        federation = prepare(recipe)
        model = load_model(runs[task] / "global")
        inputs = federation.data.inputs("test", slice(0, 3))
        with torch.no_grad():
            found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
            weights = dict(model.state_dict())
            assert torch.equal(found, federation.evaluation_forward(weights, inputs))
        assert list(model.label_names) == list(federation.data.class_names)

    def test_it_is_resumed_with_the_same_bytes_and_another_task_is_refused(self, runs, task, tmp_path):
        recipe = _recipe(runs[task])
        recipe["stages"] = recipe["stages"][:2]
        short = run_recipe(recipe | {"stages": [{"fedavg": {"rounds": 1}}]}, tmp_path / "run")
        assert short.rounds == 1
        with Run(parse_recipe(recipe, "r.yaml"), tmp_path / "run", extend=True) as run:
            list(run.execute())
        place = Path("checkpoints") / "2-fedmr-0003" / "global" / "model.safetensors"
        assert (tmp_path / "run" / place).read_bytes() == (runs[task] / place).read_bytes()
        other = "regression" if task != "regression" else "tabular-classification"
        with pytest.raises(FedmrMergeError, match=f"task {other} needs"):
            prepare(parse_recipe(recipe | {"task": {"name": other}}, "r.yaml"))


def _recipe(folder: Path) -> dict[str, Any]:
    import yaml

    recipe: dict[str, Any] = yaml.safe_load((folder / "recipe.yaml").read_text())
    return recipe


def test_a_row_and_a_text_become_what_a_model_takes(runs):
    row = load_model(runs["regression"] / "global")
    names = row.config["preprocess"]["features"]
    means = dict(zip(names, row.config["preprocess"]["mean"], strict=True))
    assert torch.equal(row.preprocess(means), torch.zeros(1, len(names)))
    assert torch.equal(row.preprocess([list(means.values())] * 2), torch.zeros(2, len(names)))
    target = row.config["preprocess"]["target"]
    assert row.preprocess.predicted(torch.tensor([[0.0], [1.0]])).tolist() == pytest.approx(
        [target["mean"], target["mean"] + target["std"]]
    )
    assert "row = [0.0] * 10 " in (runs["regression"] / "global" / "README.md").read_text()
    with pytest.raises(ValueError, match="has no feature"):
        row.preprocess({"height": 1})
    text = load_model(runs["text-classification"] / "global")
    found = text.preprocess(["ab", "a" * 40])
    assert found["input_ids"].shape == (2, 16)
    assert found["attention_mask"].sum(dim=1).tolist() == [2, 16]
    assert text(**found).shape == (2, 2)


def test_a_config_that_is_not_possible_is_refused(runs, tmp_path):
    import shutil

    folder = Path(shutil.copytree(runs["causal-lm"] / "global", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"input": {"kind": "tokens", "shape": [0, 5]}}, "input must give shape"),
        ({"input": 5}, "input must give shape"),
        ({"num_outputs": "many"}, "num_outputs must be a whole number"),
        ({"num_outputs": 9}, "does not fit the weights"),
        ({"input": {"kind": "tokens", "shape": [16]}}, "gpt cannot be built as it says"),
        ({"preprocess": {"length": 5}}, "the preprocess of config.json is not as it should be"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=message):
            load_model(folder)


def test_runs_are_compared_by_their_own_metric(runs, tmp_path, capsys):
    assert command("compare", runs["regression"], "--target", "60", "-o", tmp_path / "out") == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| rmse |" in table
    assert "rounds to 60" in table
    assert (tmp_path / "out" / "curves.csv").read_text().splitlines()[0].endswith("round,test_rmse")
    assert command("compare", *runs.values()) == 0
    shown = capsys.readouterr().out
    assert "perplexity" in shown
    assert command("compare", runs["text-classification"], "--target", "60") == 2
    assert "60 is not an accuracy" in capsys.readouterr().err


def test_a_report_shows_every_task(runs, tmp_path):
    assert command("report", *runs.values(), "-o", tmp_path / "report") == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "test perplexity of the global model" in page


def test_a_stage_ends_by_validation_and_its_last_round_is_evaluated(tmp_path):
    training = {"clients_per_round": 3, "local_epochs": 1, "batch_size": 16, "lr": 0.02, "evaluate_every": 3}
    stages = [
        {"fedmr": {"rounds": 8, "until": {"plateau": {"patience": 1, "min_delta": 10.0}}}},
        {"fedavg": {"rounds": 4, "until": {"similarity": {"above": -0.99}}}},
        {"publish": {}},
    ]
    training |= {"validation_share": 0.2, "validation_at": "clients"}
    recipe = recipe_of("tabular-classification", tmp_path, training=training, stages=stages)
    finished = run_recipe(recipe, tmp_path / "run")
    found = lines(tmp_path / "run" / "metrics.jsonl")
    # The first evaluation is the best; the second one, in round 6, is no better. Similarity ends round 7 at once.
    assert [line["round"] for line in found if "test_accuracy" in line] == [3, 6, 7]
    assert finished.rounds == 7
    assert finished.test_accuracy == found[-1]["test_accuracy"]
    assert {"validation_accuracy", "validation_loss", "client_accuracy_worst_decile"} <= found[-1].keys()
    partition = json.loads((tmp_path / "run" / "partition.json").read_text())
    assert sum(map(len, partition["clients"])) == 456  # as it was dealt
    card = (tmp_path / "run" / "global" / "README.md").read_text()
    assert "was chosen with validation data" in card
    assert "over the worst tenth of the clients" in card
    assert run_recipe(tmp_path / "run").rounds == 7
    assert command("compare", tmp_path / "run", "-o", tmp_path / "out") == 0
    assert "over clients: worst decile" in (tmp_path / "out" / "table.md").read_text()
    curve = (tmp_path / "out" / "curves.csv").read_text().splitlines()[1:]
    assert [line.rsplit(",", 2)[1] for line in curve] == ["3", "6", "7"]
