"""What a card says, read from the files of a run; nothing is typed twice, and what no file says the card leaves out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def run_facts(run: Path) -> dict[str, Any]:
    """Return the facts of a run folder: what the card's template is rendered with."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    metrics = read_lines(run / "metrics.jsonl")
    lineage = read_lines(run / "lineage.jsonl")
    partition = read_json(run / "partition.json")
    publish: dict[str, Any] = next((s["publish"] for s in reversed(recipe["stages"]) if "publish" in s), {})
    last = metrics[-1]
    return {
        "name": recipe["name"],
        "recipe": recipe,
        "recipe_text": (run / "recipe.yaml").read_text(encoding="utf-8").rstrip(),
        "data": recipe["data"]["name"],
        "license": publish.get("license"),
        "tags": ["fedmr", "federated-learning", "model-recombination", "merge", *publish.get("tags", ())],
        "client_information": publish.get("client_information", True),
        "environment": read_json(run / "environment.json"),
        "evaluation": read_json(run / "evaluation.json"),
        "last": last,
        "best": max(metrics, key=lambda line: line["test_accuracy"]),
        "stages": stage_table(metrics),
        "partition": _partition_facts(partition) if partition else None,
        "layers": layer_table(lineage),
        "seconds": sum(line["seconds"] for line in metrics),
    }


def stage_table(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, stage by stage, its method, its rounds and the test accuracy at its end and at best."""
    found: list[dict[str, Any]] = []
    for line in metrics:
        if not found or found[-1]["stage"] != line["stage"]:
            found.append({"stage": line["stage"], "method": line["method"], "first": line["round"], "best": 0.0})
        found[-1] |= {
            "last": line["round"],
            "accuracy": line["test_accuracy"],
            "best": max(found[-1]["best"], line["test_accuracy"]),
        }
    return found


def layer_table(lineage: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, for every layer group of the last recombination, the clients that trained its K copies last, and how
    many clients each copy has met since the models went separate ways.

    A copy trained in slot s in round r came, by the plan of round r - 1, from slot `plan[group][s]`.
    """
    recombined = [line for line in lineage if line["plan"]]
    if not recombined:
        return []
    last = recombined[-1]
    rows = []
    for group in last["plan"]["permutations"]:
        met = [{client} for client in last["clients"]]
        place = list(range(len(last["clients"])))
        for line in reversed(recombined[:-1]):
            sources = line["plan"]["permutations"].get(group)
            if line["stage"] != last["stage"] or sources is None:
                break
            place = [sources[slot] for slot in place]
            for copy, slot in enumerate(place):
                met[copy].add(line["clients"][slot])
        rows.append(
            {
                "group": group,
                "round": last["round"],
                "clients": last["clients"],
                "met": [len(clients) for clients in met],
            }
        )
    return rows


def _partition_facts(partition: Mapping[str, Any]) -> dict[str, Any]:
    sizes = [sum(counts) for counts in partition["class_counts"]]
    return {"clients": len(sizes), "examples": sum(sizes), "smallest": min(sizes), "largest": max(sizes)}


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
