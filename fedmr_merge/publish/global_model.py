"""The global model of a run as a folder that the Hub understands."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fedmr_merge.checkpoint.tensors import save_tensors
from fedmr_merge.checkpoint.writer import staged_output, write_json
from fedmr_merge.federated.architecture import checkpoint_metadata, model_config
from fedmr_merge.federated.cohort import Weights
from fedmr_merge.federated.federation import Federation
from fedmr_merge.publish.card import merge_card, render_card
from fedmr_merge.publish.facts import read_json, read_lines, run_facts
from fedmr_merge.publish.load import CONFIG_FILE, WEIGHTS_FILE
from fedmr_merge.report.curves import draw_curves
from fedmr_merge.report.partition import draw_partition

CARD_FILE = "README.md"


def write_global_model(run: Path, federation: Federation, weights: Weights) -> Path:
    """Write `global/` of a run folder: weights, config, card, figures, recipe and lineage. What was there before is
    replaced, but for what people wrote into the card. Returns its path.
    """
    target = run / "global"
    old_card = target / CARD_FILE
    kept = old_card.read_text(encoding="utf-8") if old_card.exists() else None
    new = run / ".global-new"
    shutil.rmtree(new, ignore_errors=True)
    with staged_output(new) as staging:
        staging.mkdir()
        save_tensors(staging / WEIGHTS_FILE, weights, checkpoint_metadata(federation.architecture, federation.module))
        config = model_config(federation.architecture, federation.data)
        write_json(staging / CONFIG_FILE, config)
        facts = run_facts(run) | {"config": config, "repo": None}
        write_card_files(run, staging, facts, kept)
    if target.exists():
        shutil.rmtree(target)
    new.rename(target)
    return target


def write_card_files(run: Path, folder: Path, facts: dict[str, Any], old_card: str | None) -> None:
    """Write the card and what it shows and names: figures, recipe, lineage."""
    draw_curves(read_lines(run / "metrics.jsonl"), folder / "curves.png", title=facts["name"])
    shutil.copyfile(run / "recipe.yaml", folder / "recipe.yaml")
    if facts["client_information"]:
        partition = read_json(run / "partition.json")
        draw_partition(
            partition["class_counts"],
            partition["class_names"],
            folder / "partition.png",
            title=f"{facts['name']}: partition",
        )
        shutil.copyfile(run / "lineage.jsonl", folder / "lineage.jsonl")
    card = merge_card(old_card, render_card("global", facts))
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
