"""What a round leaves in a run folder's logs, and which models a stage ends with by what they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.rounds import RoundResult, hold_evaluation
from fedmr_merge.recipe.stages import TrainingStage
from fedmr_merge.runs.checkpoints import Saved, load_state
from fedmr_merge.runs.folder import RunFolder
from fedmr_merge.runs.names import DEPLOYMENT, LINEAGE, METRICS, Place

_NOT_MEASURED = ("round", "stage", "method", "seconds", "missing")  #: what a line of metrics.jsonl adds to `metrics`


def record_round(folder: RunFolder, position: int, result: RoundResult, seconds: float) -> dict[str, Any]:
    """Add a round of the stage at `position` to the logs; returns its line of metrics.jsonl."""
    head = {"round": result.round, "stage": position + 1, "method": result.method}
    metrics = {**head, **result.metrics, "seconds": round(seconds, 3)}
    if result.missing:
        metrics["missing"] = {str(client): reason for client, reason in result.missing.items()}
    folder.append(METRICS, metrics)
    plan = result.plan.to_json() if result.plan else None
    line = {**head, "clients": list(result.clients), "plan": plan}
    if result.diverged:
        line["diverged"] = {str(client): fault for client, fault in result.diverged.items()}
    if result.absent:
        line["absent"] = list(result.absent)
    folder.append(LINEAGE, line)
    if result.report is not None:
        folder.append(DEPLOYMENT, {**head, **result.report, "next_models": result.state.cohort.content})
    return metrics


def read_rounds(folder: RunFolder, position: int) -> list[dict[str, Any]]:
    """Return the metrics of the rounds that the stage at `position` has done."""
    return [line for line in folder.read_log(METRICS) if line["stage"] == position + 1]


def measured(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `metrics` of the round that a line of metrics.jsonl is of."""
    return {key: value for key, value in line.items() if key not in _NOT_MEASURED}


def last_measured(folder: RunFolder) -> dict[str, Any]:
    """Return the metrics of the last round that was evaluated, none where no round was."""
    lines = [line for line in folder.read_log(METRICS) if hold_evaluation(line)]
    return measured(lines[-1]) if lines else {}


def read_best(folder: RunFolder, federation: Federation, position: int, stage: TrainingStage) -> Saved | None:
    """Return the checkpoint of the round whose models a stage ends with; None where that is its last round.

    Raises RunError when the checkpoint is damaged.
    """
    history = read_rounds(folder, position)
    best = stage.length.best_round(federation, history, over=True)
    if best is None or best == history[-1]["round"]:
        return None
    return load_state(folder.checkpoints, Place(best, position, stage.name), federation)
