"""What a `publish` stage makes of a run: a folder that the Hub understands.

    model.safetensors, config.json   the global model (`what: global` or `both`)
    slot-00/ … slot-09/              the models that the next round would dispatch (`what: cohort` or `both`)
    README.md, curves.png            the card
    recipe.yaml, environment.json, metrics.jsonl, evaluation.json
    partition.json, partition.png, lineage.jsonl     what tells something of the clients, unless it is left out

Every fact of the card comes from a file of this folder, so that whoever has the folder can check the card.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import yaml

from fedmr_merge.checkpoint.folder import CONFIG_FILE, WEIGHTS_FILE
from fedmr_merge.checkpoint.tensors import save_tensors
from fedmr_merge.checkpoint.writer import staged_output, write_json
from fedmr_merge.federated.catalogue import DATA_SETS
from fedmr_merge.federated.evaluation import evaluate_by_class
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.models.base import checkpoint_metadata, model_config
from fedmr_merge.federated.protocol import State
from fedmr_merge.hub.listing import parse_hub
from fedmr_merge.publish.card import CARD_FILE
from fedmr_merge.publish.facts import read_json
from fedmr_merge.publish.write_card import write_card
from fedmr_merge.recombination.planning import slot_name

What = Literal["global", "cohort", "both"]


def write_publication(
    run: Path,
    target: Path,
    federation: Federation,
    state: State,
    round: int,
    *,
    what: What = "global",
    client_information: bool = True,
) -> Path:
    """Write what is published of a run folder's state after a round, with its card, at `target`.

    What was there before is replaced, but for what people wrote into the card. Returns `target`.
    """
    new, old = target.with_name(f".{target.name}-new"), target.with_name(f".{target.name}-old")
    if old.exists() and not target.exists():  # killed between the two renames at the end
        old.rename(target)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with staged_output(new) as staging:
        staging.mkdir()
        _write_models(staging, federation, state, what)
        if what != "cohort":
            write_json(staging / "evaluation.json", evaluation_json(federation, state, round))
        _copy_facts(run, staging, client_information=client_information)
        if (target / CARD_FILE).exists():
            shutil.copyfile(target / CARD_FILE, staging / CARD_FILE)
        write_card(staging)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def evaluation_json(federation: Federation, state: State, round: int) -> dict[str, Any]:
    """Measure a state's global model on the held-out data; return what `evaluation.json` holds."""
    data = federation.data
    weights = state.to(federation.device).global_weights  # one that was read from a checkpoint is on the CPU
    found = evaluate_by_class(federation.evaluation_forward, weights, data)
    return {
        "round": round,
        "split": "test",
        "examples": found.examples,
        "accuracy": found.accuracy,
        "loss": found.loss,
        "class_names": list(data.class_names),
        "class_examples": list(found.class_examples),
        "class_accuracy": list(found.class_accuracy),
        "confusion": [list(row) for row in found.confusion],
    }


def _write_models(folder: Path, federation: Federation, state: State, what: What) -> None:
    metadata = checkpoint_metadata(federation.architecture, federation.module)
    models = {folder: state.global_weights} if what != "cohort" else {}
    if what != "global":
        slots = state.cohort.slots
        models |= {folder / slot_name(slot, slots): state.cohort.slot(slot) for slot in range(slots)}
    for place, weights in models.items():
        place.mkdir(exist_ok=True)
        save_tensors(place / WEIGHTS_FILE, weights, metadata)
        write_json(place / CONFIG_FILE, model_config(federation.architecture, federation.data))


def _copy_facts(run: Path, folder: Path, *, client_information: bool) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump(published_recipe(recipe), sort_keys=False, allow_unicode=True, width=120)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    for name in ("environment.json", "metrics.jsonl"):
        shutil.copyfile(run / name, folder / name)
    if client_information:
        shutil.copyfile(run / "lineage.jsonl", folder / "lineage.jsonl")
        partition = read_json(run / "partition.json")
        write_json(folder / "partition.json", {key: partition[key] for key in ("class_names", "class_counts")})


def published_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved recipe that anybody can run: it names no place of this machine and pushes nowhere.

    The folder of a data set that can be had otherwise is left out, of any other path only the last part stays.
    """
    data, model = dict(recipe["data"]), dict(recipe["model"])
    if data.get("path"):
        cls: Any = DATA_SETS.find(data["name"])
        optional = any(field.name == "path" and field.default is None for field in fields(cls))
        data["path"] = None if optional else Path(data["path"]).name
    if model.get("init"):
        model["init"] = [_public(source) for source in model["init"]]
    stages = []
    for stage in recipe["stages"]:
        [(name, options)] = stage.items()
        changes: dict[str, Any] = {"repo": None, "private": False, "every": None} if name == "publish" else {}
        if str(options.get("rule", "")).endswith((".yaml", ".yml")):
            changes["rule"] = Path(options["rule"]).name
        stages.append({name: {**options, **{key: value for key, value in changes.items() if key in options}}})
    return {**recipe, "data": data, "model": model, "stages": stages}


def _public(source: str) -> str:
    """A Hub id as it is; of a path the last part."""
    return source if parse_hub(source) and not Path(source).exists() else Path(source).name
