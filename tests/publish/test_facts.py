"""What a card says of a run: hand-made files, numbers that can be checked by eye."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.errors import FedmrMergeError
from fedmr_merge.publish.facts import (
    _all_trained,
    _describe_data,
    _trained_bytes,
    lineage_facts,
    run_facts,
    stage_table,
)
from fedmr_merge.publish.write_card import write_card
from fedmr_merge.runs.public import published_recipe


def line(round: int, clients: list[int], plan: dict[str, list[int]] | None, stage: int = 2) -> dict[str, Any]:
    permutations = None if plan is None else {"format_version": 1, "slots": len(clients), "permutations": plan}
    return {"round": round, "stage": stage, "method": "fedmr", "clients": clients, "plan": permutations}


def test_who_trained_each_copy_last_and_how_many_have() -> None:
    """Two slots, two groups, three rounds. Group `a` never moves, group `b` changes places in every round."""
    moves = {"a": [0, 1], "b": [1, 0]}
    lineage = [
        line(1, [9, 9], None, stage=1),
        line(2, [10, 20], moves),
        line(3, [10, 30], moves),
        line(4, [40, 20], moves),
    ]
    # Slot 0 of b after round 4 was slot 1 in round 4 (client 20), 0 in round 3 (10) and 1 in round 2 (20).
    assert lineage_facts(lineage) == {
        "round": 4,
        "first": 2,
        "slots": 2,
        "clients": [40, 20],
        "groups": [
            {"group": "a", "trained": [40, 20], "met": [2, 2]},
            {"group": "b", "trained": [20, 40], "met": [2, 3]},
        ],
    }


def test_clients_whose_training_was_not_used_have_trained_nothing() -> None:
    moves = {"a": [0, 1], "b": [1, 0]}
    lineage = [
        line(1, [1, 2], moves) | {"diverged": {"2": "its training loss is nan"}},
        line(2, [3, 5], moves) | {"absent": [5]},
    ]
    facts = lineage_facts(lineage)
    assert facts is not None
    assert (facts["slots"], facts["clients"]) == (2, [3])
    # Slot 0 of b after round 2 was slot 1 in round 2 (5, absent) and slot 0 in round 1 (client 1).
    assert facts["groups"] == [
        {"group": "a", "trained": [3, None], "met": [2, 0]},
        {"group": "b", "trained": [None, 3], "met": [1, 1]},
    ]


def test_the_card_counts_only_the_clients_that_trained(run: Path) -> None:
    folder = run / "global"
    card = write_card(folder).read_text()
    assert "In every round 3 clients train a model of 0.76 MB each." in card
    assert "3 of them train in each round" in card
    lines = [json.loads(text) for text in (folder / "lineage.jsonl").read_text().splitlines()]
    gone = lines[-1]["clients"][1]
    lines[-1]["absent"] = [gone]
    (folder / "lineage.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    card = write_card(folder).read_text()
    assert "In every round up to 3 clients train a model" in card
    assert "Up to 3 of them train in each round" in card
    others = [client for client in lines[-1]["clients"] if client != gone]
    assert f"In round 3 these were the clients {others[0]}, {others[1]}." in card
    row = next(text for text in card.splitlines() if text.startswith("| `conv1`"))
    assert "–" in row.split("|")[2].split()


@pytest.mark.parametrize(
    ("training", "lineage", "known"),
    [
        ({}, [], True),
        ({"availability": 0.5}, [], False),
        ({"on_divergence": "drop"}, [], False),
        ({"on_divergence": "drop"}, [line(1, [1, 2], None)], True),
        ({"on_divergence": "drop"}, [line(1, [1, 2], None) | {"diverged": {"2": "nan"}}], False),
    ],
)
def test_it_is_known_that_all_clients_trained(
    training: dict[str, Any], lineage: list[dict[str, Any]], known: bool
) -> None:
    assert _all_trained({"training": training}, {}, lineage) is known
    assert not _all_trained({"training": training}, {"nodes": {"rounds_with_missing": 1}}, lineage)


def test_the_size_of_an_adapter_is_not_that_of_their_exact_mean(run: Path) -> None:
    """The mean has the sum of their ranks; the models of the cohort are as the clients train them."""
    folder = run / "global"
    slot = open_checkpoint(folder / "slot-00")
    exact = {"model": {"adapter": {"mean": "exact"}}}
    assert _trained_bytes(folder, ["slot-00"], exact, slot) == slot.nbytes
    assert _trained_bytes(folder, [], exact, slot) is None
    assert _trained_bytes(folder, [], {"model": {"adapter": {"mean": "factors"}}}, slot) == slot.nbytes
    assert _trained_bytes(folder, [], {"model": {"adapter": None}}, slot) == slot.nbytes


def test_what_clients_reached_is_that_of_the_published_round(run: Path) -> None:
    """With `keep: best` it is not the last one that was evaluated."""
    folder = run / "global"
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    for number, entry in enumerate(lines, start=1):
        entry |= {f"client_accuracy_{key}": number / 8 for key in ("mean", "deviation", "worst_decile")}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    evaluation = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps(evaluation | {"round": 2}))
    card = " ".join(write_card(folder).read_text().split())
    assert "the accuracy after round 2 is 25.00 % on average" in card


def test_rounds_that_did_not_recombine_leave_every_copy_where_it_is() -> None:
    lineage = [line(1, [1, 2], None), line(2, [3, 4], {"a": [1, 0]})]
    facts = lineage_facts(lineage)
    assert facts is not None
    assert facts["groups"] == [{"group": "a", "trained": [4, 3], "met": [2, 2]}]


@pytest.mark.parametrize("lineage", [[], [line(1, [1, 2], {"a": [1, 0]}), line(2, [1, 2], None, stage=3)]])
def test_models_that_were_not_recombined_last_have_no_such_lineage(lineage: list[dict[str, Any]]) -> None:
    assert lineage_facts(lineage) is None


def metrics(*accuracies: float) -> list[dict[str, Any]]:
    return [
        {"round": r, "stage": 1 + (r > 2), "method": "ab"[r > 2], "test_accuracy": a, "test_loss": 1.0, "seconds": 0.5}
        for r, a in enumerate(accuracies, start=1)
    ]


def test_stages_with_their_rounds_end_and_best() -> None:
    unknown = {"bytes_down": None, "bytes_up": None}  # version 0.1.0 did not record them
    assert stage_table(metrics(0.5, 0.25, 0.5, 0.75, 0.625)) == [
        {"stage": 1, "method": "a", "first": 1, "last": 2, "rounds": 2, "value": 0.25, "best": 0.5} | unknown,
        {"stage": 2, "method": "b", "first": 3, "last": 5, "rounds": 3, "value": 0.625, "best": 0.75} | unknown,
    ]


def test_facts_that_no_file_states_are_left_out(run: Path) -> None:
    folder = run / "global"
    whole = run_facts(folder)
    assert whole["partition"]["examples"] == 1438
    assert (whole["partition"]["clients"], len(whole["slots"])) == (8, 3)
    assert whole["lineage"]["first"] == 2
    assert (whole["license"], whole["tags"][-1]) == ("apache-2.0", "handwriting"), "those of the stage that wrote it"
    for name in ("partition.json", "lineage.jsonl", "evaluation.json", "environment.json"):
        (folder / name).unlink()
    facts = run_facts(folder)
    assert [facts[key] for key in ("partition", "lineage", "result", "environment")] == [None] * 4
    assert facts["privacy"] is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"name": "cifar10", "path": None}, "uoft-cs/cifar10"),
        ({"name": "cifar100", "path": "cifar-100-binary"}, "uoft-cs/cifar100"),
        ({"name": "femnist"}, "flwrlabs/femnist"),
        ({"name": "hub:org/name"}, "org/name"),
        ({"name": "text", "repo": "org/texts"}, "org/texts"),
        ({"name": "text", "path": "letters.csv", "repo": None}, None),
        ({"name": "tabular", "path": "patients.csv", "target": "ill"}, None),
        ({"name": "parquet", "path": "flowers"}, None),
        ({"name": "digits"}, None),
        ({"name": "diabetes"}, None),
        ({"name": "my_data:load", "repo": "org/name"}, None),
        ({"name": "of-a-package-that-is-not-here"}, None),
    ],
)
def test_data_are_named_as_the_hub_names_them_or_not_at_all(options: dict[str, Any], name: str | None) -> None:
    """The Hub takes the names in a card's metadata for those of its own data sets."""
    assert _describe_data(options)[1] == name


def test_what_the_card_says_of_data_is_whole_sentences() -> None:
    about = _describe_data({"name": "text"})[0] or ""
    assert about.startswith("Texts of CSV, JSON lines")
    assert about.endswith(".")


def test_a_data_set_that_is_not_on_the_hub_is_not_in_the_metadata(run: Path) -> None:
    card = write_card(run / "global").read_text()
    assert "datasets" not in card.split("---")[1]
    assert 'type: "own-data"' in card.split("---")[1]


def test_privacy_is_told_as_it_was_measured(run: Path) -> None:
    folder = run / "global"
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["training"]["privacy"] = {"clip": 0.5, "noise_multiplier": 1.1, "delta": 1e-05}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert run_facts(folder)["privacy"] is None, "no epsilon was measured"
    lines = [json.loads(text) | {"epsilon": 2.5} for text in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    assert run_facts(folder)["privacy"] == {
        "kind": "local",
        "clip": 0.5,
        "noise_multiplier": 1.1,
        "delta": 1e-05,
        "epsilon": 2.5,
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.yaml", "[]", "recipe.yaml: damaged"),
        ("recipe.yaml", "a: [", "recipe.yaml: damaged: not YAML"),
        ("metrics.jsonl", "", "holds files that no `publish` stage wrote"),
        ("metrics.jsonl", "{}\n", "metrics.jsonl: damaged: line 1: round: Field required"),
        ("partition.json", "{}", "partition.json: damaged: class_names"),
        ("config.json", "[", "config.json: damaged: not JSON"),
    ],
)
def test_damaged_files_are_named(run: Path, name: str, content: str, message: str) -> None:
    (run / "global" / name).write_text(content)
    with pytest.raises(FedmrMergeError, match=message):
        run_facts(run / "global")


def recipe(**data: Any) -> dict[str, Any]:
    stages = [
        {"fedmr": {"rounds": 2, "rule": "/home/me/rules/mine.yaml"}},
        {"fedmr": {"rounds": 2, "rule": "layer"}},
        {"publish": {"repo": "a/b", "private": True, "every": 2, "what": "both"}},
    ]
    return {"name": "x", "data": data, "model": {"name": "cnn"}, "training": {}, "stages": stages}


def test_published_recipe_pushes_nowhere_and_names_no_folder() -> None:
    found = published_recipe(recipe(name="cifar10", path="/data/cifar"))
    assert found["data"] == {"name": "cifar10", "path": None}, "it can be had from the Hub"
    rules = [stage["fedmr"]["rule"] for stage in found["stages"][:2]]
    assert rules == ["mine.yaml", "layer"]
    assert found["stages"][2] == {"publish": {"repo": None, "private": False, "every": None, "what": "both"}}
    assert published_recipe(recipe(name="parquet", path="/data/flowers"))["data"]["path"] == "flowers"


def test_published_recipe_names_no_folder_that_is_an_option_of_own_code() -> None:
    given = recipe(name="my_data:load", path="/home/me/x", more={"roots": ["/home/me/a", "b/c"], "n": 3}, home="~/me")
    given["data"]["partition"] = {"kind": "my_parts:Halves", "table": "/home/me/halves.csv"}
    given["model"] = {"name": "my_nets:Net", "words": "/home/me/words.txt", "separator": "/", "width": 4}
    given["task"] = {"name": "my_tasks:Mine", "file": "/home/me/costs.json"}
    given["stages"] = [{"my_methods:Mine": {"rounds": 2, "file": "/home/me/steps"}}]
    found = published_recipe(given)
    assert "/home" not in json.dumps(found)
    assert found["data"] == {
        "name": "my_data:load",
        "path": "x",
        "more": {"roots": ["a", "b/c"], "n": 3},
        "home": "me",
        "partition": {"kind": "my_parts:Halves", "table": "halves.csv"},
    }
    assert found["model"] == {"name": "my_nets:Net", "words": "words.txt", "separator": "/", "width": 4}
    assert found["stages"] == [{"my_methods:Mine": {"rounds": 2, "file": "steps"}}]
    assert given["data"]["path"] == "/home/me/x", "what is published is a copy"
    file = recipe(name="digits", partition={"kind": "file", "path": "/home/me/parts.json"})
    assert published_recipe(file)["data"]["partition"]["path"] == "parts.json"


def test_published_recipe_names_first_weights_by_their_names_only(tmp_path: Path) -> None:
    given = recipe(name="digits")
    given["model"]["init"] = [str(tmp_path / "m.safetensors"), "org/name@v1/slot-00"]
    assert published_recipe(given)["model"]["init"] == ["m.safetensors", "org/name@v1/slot-00"]
