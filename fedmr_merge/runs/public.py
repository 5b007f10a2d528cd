"""What of a run is public: a recipe that anybody can follow, and what of the partition names no example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedmr_merge.federated.catalogue import ALGORITHMS, ARCHITECTURES, DATA_SETS, PARTITIONS, TASKS, Catalogue
from fedmr_merge.hub.inputs import public_model_name, public_name
from fedmr_merge.own_code import is_import_path


def published_partition(partition: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many examples of each class every client has, without saying which examples these are."""
    return {key: partition[key] for key in ("class_names", "class_counts")}


def published_metrics(metrics: Sequence[Mapping[str, Any]], *, private: bool) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl` to publish.

    They leave out `missing`: it says which clients did not answer and why, with the names of nodes and of their files.
    Those of a private run leave out `train_loss`, too: no noise was added to it, so that epsilon does not cover it.
    """
    hidden = {"missing", "train_loss"} if private else {"missing"}
    return [{key: value for key, value in line.items() if key not in hidden} for line in metrics]


def published_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved recipe that anybody can run: it names no place of this machine and pushes nowhere.

    Nor does it name the key file of a private run. The folder of a data set that can be had otherwise is left out, of
    any other path only the last part stays. Options of the user's own code are paths where they are absolute ones.
    """
    # Where its metrics are shown concerns nobody else.
    training = {key: value for key, value in recipe["training"].items() if key != "log"}
    if training.get("privacy"):
        training["privacy"] = {key: value for key, value in training["privacy"].items() if key != "key_file"}
    # The names of the clients' machines concern nobody else.
    kept = {key: value for key, value in recipe.items() if key != "deployment"}
    if "task" in recipe:
        kept["task"] = _of_own_code(TASKS, recipe["task"]["name"], recipe["task"])
    return {
        **kept,
        "data": _published_data(recipe["data"]),
        "model": _published_model(recipe["model"]),
        "training": training,
        "stages": [_published_stage(name, options) for stage in recipe["stages"] for name, options in stage.items()],
    }


def is_own_code(catalogue: Catalogue[Any], name: str) -> bool:
    """Return whether a name in a recipe is the import path of the user's own code, and not that of a plug-in."""
    return is_import_path(name) and name not in catalogue


def _published_data(options: Mapping[str, Any]) -> dict[str, Any]:
    data = _of_own_code(DATA_SETS, options["name"], options)
    if data.get("path") and data["name"] in DATA_SETS:
        cls: Any = DATA_SETS.find(data["name"])
        optional = any(field.name == "path" and field.default is None for field in fields(cls))
        optional = optional and data.get("repo", "") is not None  # files that stand in the place of the Hub's
        data["path"] = None if optional else Path(data["path"]).name
    if isinstance(data.get("tokenizer"), str):
        data["tokenizer"] = public_name(data["tokenizer"])
    if "partition" in options:
        partition = _of_own_code(PARTITIONS, options["partition"]["kind"], options["partition"])
        if partition["kind"] in PARTITIONS and partition.get("path"):
            partition["path"] = Path(partition["path"]).name
        data["partition"] = partition
    return data


def _published_model(options: Mapping[str, Any]) -> dict[str, Any]:
    model = _of_own_code(ARCHITECTURES, options["name"], options)
    if model.get("init"):
        model["init"] = [public_name(source) for source in options["init"]]
    if isinstance(model.get("weights"), str):
        model["weights"] = public_name(model["weights"])
    model["name"] = public_model_name(str(model["name"]))
    return model


def _published_stage(name: str, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    changes: dict[str, Any] = {"repo": None, "private": False, "every": None} if name == "publish" else {}
    if str(options.get("rule", "")).endswith((".yaml", ".yml")):
        changes["rule"] = Path(options["rule"]).name
    changed = {key: value for key, value in changes.items() if key in options}
    return {name: {**_of_own_code(ALGORITHMS, name, options), **changed}}


def _of_own_code(catalogue: Catalogue[Any], name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a plug-in; those of the user's own code hold no absolute path, but its last part."""
    is_own = is_own_code(catalogue, name)
    return {key: _last_parts(value) if is_own else value for key, value in options.items()}


def _last_parts(value: Any) -> Any:
    if isinstance(value, str):
        is_place = Path(value).is_absolute() or value.startswith("~")
        return (Path(value).name or value) if is_place else value
    if isinstance(value, Mapping):
        return {key: _last_parts(inner) for key, inner in value.items()}
    return [_last_parts(inner) for inner in value] if isinstance(value, list | tuple) else value
