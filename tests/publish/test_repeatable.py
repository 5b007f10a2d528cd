"""What a card says of repeating its run: a command that works, or why there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import RECIPE, write_run

from fedmr_merge.publish.publication import _nodes
from fedmr_merge.publish.repeatable import why_not_repeatable
from fedmr_merge.publish.write_card import write_card
from fedmr_merge.runs.record import read_run

DATA = {"name": "digits", "partition": {"kind": "iid", "clients": 3}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": DATA | {"name": "hub:org/name", "tokenizer": "org/tokenizer"}},
        {"data": DATA | {"name": "text", "tokenizer": "bytes", "path": "letters.csv"}},
        {"model": {"name": "transformers:org/bert@v1", "init": ["org/name@v1/slot-00"]}},
        {"model": {"name": "torchvision:resnet18", "weights": "IMAGENET1K_V1"}},
        {"model": {"name": "timm:resnet18", "weights": "org/weights"}},
        {"stages": [{"fedmr": {"rounds": 2, "rule": "layer"}}]},
    ],
)
def test_what_anybody_can_repeat(changes: dict[str, Any]) -> None:
    assert why_not_repeatable(RECIPE | changes, {"packages": {}}) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": DATA | {"partition": {"kind": "nodes"}}}, "the data of its clients stayed on their own machines"),
        ({"data": DATA | {"partition": {"kind": "file", "path": "p.json"}}}, "it needs the partition file p.json"),
        ({"data": DATA | {"name": "text", "tokenizer": "bpe"}}, "it needs the tokenizer bpe"),
        (
            {"data": DATA | {"name": "python:data"}, "model": {"name": "nets:Small"}},
            "it needs what was given from Python as python:data, the code of nets:Small",
        ),
        ({"data": DATA | {"partition": {"kind": "parts:Halves"}}}, "it needs the code of parts:Halves"),
        ({"task": {"name": "tasks:Mine"}}, "it needs the code of tasks:Mine"),
        ({"stages": [{"methods:Mine": {"rounds": 1}}] * 2}, "it needs the code of methods:Mine"),
        ({"stages": [{"fedmr": {"rounds": 1, "rule": "mine.yaml"}}]}, "it needs the layer rule mine.yaml"),
        ({"model": {"name": "cnn", "init": ["m.safetensors"]}}, "it needs the first weights m.safetensors"),
        ({"model": {"name": "timm:resnet18", "weights": "mine"}}, "it needs the first weights mine"),
        ({"model": {"name": "transformers:bert"}}, "it needs the model bert"),
    ],
)
def test_what_nobody_else_can_repeat(changes: dict[str, Any], reason: str) -> None:
    assert why_not_repeatable(RECIPE | changes, {}) == reason


def test_rounds_in_which_a_node_did_not_answer_are_not_repeated_and_only_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 0.5, 0.6, 0.7)
    assert _nodes(folder, read_run(folder)) == {}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[1]["missing"] = {"3": "its node 'berlin' is not online"}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "deployment.jsonl").write_text('{"round": 2}\n{"round": 3}\n')
    nodes = _nodes(folder, read_run(folder))
    assert nodes == {"nodes": {"rounds": 2, "rounds_with_missing": 1}}
    assert why_not_repeatable(RECIPE, nodes) == "in 1 of its rounds not all clients answered"


def test_the_card_gives_the_reason_in_place_of_a_command(run: Path) -> None:
    folder = run / "global"
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["data"]["partition"] = {"kind": "file", "path": "p_q.json"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = write_card(folder).read_text().split("## Reproduce it\n")[1].split("\n## ")[0]
    needs = "This run cannot be repeated from this repository alone: it needs the partition file p_q.json."
    assert card.strip().startswith(f"{needs} It was made with:\n\n| what | version or value |\n")
    assert "fedmr-merge run" not in card
    assert "byte for byte" not in card
