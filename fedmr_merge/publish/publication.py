"""What a `publish` stage makes of a run: a folder that the Hub understands.

    model.safetensors, config.json   the global model (`what: global` or `both`)
    slot-00/ … slot-09/              the models that the next round would dispatch (`what: cohort` or `both`)
    README.md, curves.png            the card
    recipe.yaml, environment.json, metrics.jsonl, task.json
    evaluation.json, slots.json      the accuracy of the global model, and that of every slot; the stage that wrote this
    partition.json, partition.png, lineage.jsonl     what reveals something of the clients, unless it is left out

Every fact of the card comes from a file of this folder, so that anybody who has the folder can check the card.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from fedmr_merge.checkpoint.writer import staged_output, write_json
from fedmr_merge.federated.evaluation import evaluate
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.models._layout import write_model
from fedmr_merge.federated.protocol import State
from fedmr_merge.publish.card import CARD_FILE
from fedmr_merge.publish.facts import SLOTS_FILE
from fedmr_merge.publish.write_card import write_card
from fedmr_merge.recombination.prepare import slot_name
from fedmr_merge.runs.names import DEPLOYMENT, ENVIRONMENT, EVALUATION, LINEAGE, METRICS, PARTITION, RECIPE, TASK
from fedmr_merge.runs.public import published_metrics, published_partition, published_recipe
from fedmr_merge.runs.record import RunRecord, read_run

What = Literal["global", "cohort", "both"]


@dataclass(frozen=True)
class Contents:
    """What a `publish` stage publishes."""

    stage: int  #: its number in the recipe, from 1: its card has the licence and the tags of that stage
    what: What = "global"
    client_information: bool = True


def write_publication(
    run: Path, target: Path, federation: Federation, state: State, round: int, contents: Contents
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
        _write_models(staging, federation, state, contents.what)
        number = {"stage": contents.stage}
        if contents.what != "cohort":
            write_json(staging / EVALUATION, number | evaluation_json(federation, state, round))
        if contents.what != "global":
            write_json(staging / SLOTS_FILE, number | slots_json(federation, state, round))
        _copy_facts(run, staging, client_information=contents.client_information)
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
    weights = state.to(federation.device).global_weights  # one that was read from a checkpoint is on the CPU
    found = evaluate(federation, weights, in_detail=True)
    return {"round": round, "split": "test", "examples": found.examples, **found.metrics, **found.details}


def slots_json(federation: Federation, state: State, round: int) -> dict[str, Any]:
    """Measure every model of a cohort on the held-out data; return what `slots.json` holds."""
    cohort = state.to(federation.device).cohort
    found = [evaluate(federation, cohort.slot(slot)) for slot in range(cohort.slots)]
    return {
        "round": round,
        "split": "test",
        "examples": found[0].examples,
        "slots": [dict(one.metrics) for one in found],
    }


def _write_models(folder: Path, federation: Federation, state: State, what: What) -> None:
    models = {folder: state.global_weights} if what != "cohort" else {}
    if what != "global":
        slots = state.cohort.slots
        models |= {folder / slot_name(slot, slots): state.cohort.slot(slot) for slot in range(slots)}
    for place, weights in models.items():
        place.mkdir(exist_ok=True)
        write_model(place, federation.architecture.published(), federation.module, weights, federation.config)
        federation.data.write_sidecars(place)


def _copy_facts(run: Path, folder: Path, *, client_information: bool) -> None:
    record = read_run(run)
    text = yaml.safe_dump(published_recipe(record.recipe), sort_keys=False, allow_unicode=True, width=120)
    (folder / RECIPE).write_text(text, encoding="utf-8")
    write_json(folder / ENVIRONMENT, {**(record.environment or {}), **_nodes(run, record)})
    for name in (TASK, *((LINEAGE,) if client_information else ())):
        if name != TASK or record.task is not None:
            shutil.copyfile(run / name, folder / name)
    lines = published_metrics(record.metrics, private=record.recipe["training"].get("privacy") is not None)
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    (folder / METRICS).write_text(text, encoding="utf-8")
    if client_information and record.partition is not None:
        write_json(folder / PARTITION, published_partition(record.partition))


def _nodes(run: Path, record: RunRecord) -> dict[str, Any]:
    """Return in how many rounds the clients were nodes, and in how many of these not all of them answered.

    A run may be begun in one process and resumed over nodes, so that what it recorded at its beginning does not say it.
    """
    log = run / DEPLOYMENT
    if not log.exists():
        return {}
    missing = sum("missing" in line for line in record.metrics)
    return {"nodes": {"rounds": log.read_bytes().count(b"\n"), "rounds_with_missing": missing}}
