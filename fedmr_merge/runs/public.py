"""What of a run is public: a recipe that anybody can follow, and what of the partition names no example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedmr_merge.federated.catalogue import DATA_SETS
from fedmr_merge.hub.inputs import public_name


def published_partition(partition: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many examples of each class every client has, without saying which examples these are."""
    return {key: partition[key] for key in ("class_names", "class_counts")}


def published_metrics(metrics: Sequence[Mapping[str, Any]], *, private: bool) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl` to publish.

    Those of a private run leave out `train_loss`: no noise was added to it, so that epsilon does not cover it.
    """
    return [{key: value for key, value in line.items() if not (private and key == "train_loss")} for line in metrics]


def published_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved recipe that anybody can run: it names no place of this machine and pushes nowhere.

    Nor does it name the key file of a private run. The folder of a data set that can be had otherwise is left out, of
    any other path only the last part stays.
    """
    data, model = dict(recipe["data"]), dict(recipe["model"])
    if data.get("path"):
        cls: Any = DATA_SETS.find(data["name"])
        optional = any(field.name == "path" and field.default is None for field in fields(cls))
        optional = optional and data.get("repo", "") is not None  # files that stand in the place of the Hub's
        data["path"] = None if optional else Path(data["path"]).name
    if isinstance(data.get("tokenizer"), str):
        data["tokenizer"] = public_name(data["tokenizer"])
    if model.get("init"):
        model["init"] = [public_name(source) for source in model["init"]]
    if model.get("weights"):
        model["weights"] = public_name(model["weights"])
    library, _, source = str(model["name"]).partition(":")
    if library == "transformers":
        model["name"] = f"{library}:{public_name(source)}"
    stages = []
    for stage in recipe["stages"]:
        [(name, options)] = stage.items()
        changes: dict[str, Any] = {"repo": None, "private": False, "every": None} if name == "publish" else {}
        if str(options.get("rule", "")).endswith((".yaml", ".yml")):
            changes["rule"] = Path(options["rule"]).name
        stages.append({name: {**options, **{key: value for key, value in changes.items() if key in options}}})
    # Where its metrics are shown concerns nobody else.
    training = {key: value for key, value in recipe["training"].items() if key != "log"}
    if training.get("privacy"):
        training["privacy"] = {key: value for key, value in training["privacy"].items() if key != "key_file"}
    # The names of the clients' machines concern nobody else.
    kept = {key: value for key, value in recipe.items() if key != "deployment"}
    return {**kept, "data": data, "model": model, "training": training, "stages": stages}
