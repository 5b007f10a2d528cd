"""What a run's card says, read from the files that are published beside it.

Nothing is typed twice, and what no file says the card leaves out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from fedmr_merge.checkpoint.folder import WEIGHTS
from fedmr_merge.checkpoint.open import Checkpoint, open_checkpoint
from fedmr_merge.errors import FedmrMergeError, HubError
from fedmr_merge.federated.metrics import ACCURACY, Metric
from fedmr_merge.hub.listing import parse_hub
from fedmr_merge.publish.repeatable import why_not_repeatable
from fedmr_merge.runs.record import read_run, who_trained

TAGS = ("fedmr", "federated-learning", "model-recombination", "merge")
SLOTS_FILE = "slots.json"  #: the accuracy of every model of a published cohort
_SLOT = "slot-*"
_IMAGES = "image-classification"  #: the task of runs that do not name one
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def run_facts(folder: Path) -> dict[str, Any]:
    """Return the facts of a folder that a `publish` stage wrote: what its card's template is rendered with.

    Raises HubError when a file that every such folder holds is missing or damaged.
    """
    try:
        run = read_run(folder)
        recipe, metrics, partition = run.recipe, run.metrics, run.partition
        slot_results = read_json(folder / SLOTS_FILE)
        about, data_id = _describe_data(recipe["data"])
        publish = _publish_options(recipe["stages"], run.evaluation or slot_results or {})
        evaluated = [line for line in metrics if line.get(run.metric.key) is not None]
        round = (run.evaluation or slot_results or metrics[-1])["round"]
        published = next((line for line in evaluated if line["round"] == round), evaluated[-1])
        return {
            "name": recipe["name"],
            "recipe": recipe,
            "recipe_text": run.recipe_text.rstrip(),
            "data": recipe["data"]["name"],
            "data_about": about,
            "data_id": data_id,
            "license": publish.get("license"),
            "tags": list(dict.fromkeys([*TAGS, *publish.get("tags", ())])),
            **_model_facts(folder, recipe),
            "slot_results": slot_results,
            "tool": tool_address(),
            "result": run.evaluation,
            "parents": _parents(recipe, run.environment or {}),
            "last": metrics[-1],
            "round": round,
            "value": published[run.metric.key],
            "value_round": published["round"],
            "metric": run.metric,
            "task_metrics": run.metrics_of_task,
            "task": run.task or {"name": _IMAGES, "pipeline_tag": _IMAGES},
            "best": run.best_line,
            "best_by": run.deciding_part,
            "over_clients": over_clients(published, run.metric),
            "stages": stage_table(metrics, run.metric),
            "bytes_down": _total(metrics, "bytes_down"),
            "bytes_up": _total(metrics, "bytes_up"),
            "seconds": sum(line["seconds"] for line in metrics),
            "privacy": _privacy(recipe, metrics[-1]),
            "partition": _partition_facts(partition) if partition is not None else None,
            "all_trained": _all_trained(recipe, run.environment or {}, run.lineage),
            "lineage": lineage_facts([line for line in run.lineage if line["round"] <= round]),
            "environment": run.environment,
            "node_rounds": _node_rounds(run.environment or {}, metrics),
            "not_repeatable": why_not_repeatable(recipe, run.environment or {}),
        }
    except OSError as error:
        raise HubError(f"{error.filename}: cannot be read: {error.strerror}", hint=_HINT) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise HubError(f"{folder}: holds files that no `publish` stage wrote: {error!r}", hint=_HINT) from error


def tool_address() -> str | None:
    """Return the address of this package, as its metadata state it; None where they state none."""
    try:
        found = metadata("fedmr-merge").get_all("Project-URL") or ()
    except PackageNotFoundError:
        return None
    return next((address.split(",", 1)[1].strip() for address in found if "," in address), None)


def _describe_data(options: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return what the plug-in of a data set says about it, and the name of the data set on the Hub.

    What is not known here is None.
    """
    from fedmr_merge.federated.catalogue import DATA_SETS  # imports torch
    from fedmr_merge.runs.public import is_own_code

    name = str(options["name"])
    if is_own_code(DATA_SETS, name):
        return "data of whoever trained the model, which do not come with it", None
    try:
        plugin: Any = DATA_SETS.find(name)
        found = plugin(**{field.name: options[field.name] for field in fields(plugin) if field.name in options})
    except (KeyError, TypeError, ValueError, FedmrMergeError, ImportError):
        return None, None
    about = " ".join((plugin.__doc__ or "").partition("\n\n")[0].split())
    return None if name.startswith("hub:") else about or None, found.hub_id


def _publish_options(stages: Sequence[Mapping[str, Any]], written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the stage that wrote a folder: version 0.1.0 did not record which of several it was."""
    if "stage" in written:
        found: dict[str, Any] = stages[written["stage"] - 1]["publish"]
        return found
    return next((stage["publish"] for stage in reversed(stages) if "publish" in stage), {})


_HINT = "name a run folder, or what its `publish` stage wrote"


def _total(metrics: Sequence[Mapping[str, Any]], key: str) -> int | None:
    """Return the sum of a count over rounds; None where one of them did not record it."""
    return sum(line[key] for line in metrics) if all(line.get(key) is not None for line in metrics) else None


def over_clients(line: Mapping[str, Any], metric: Metric) -> dict[str, float] | None:
    """Return how a round's metric is spread over the clients' own held-out parts; None where it was not measured."""
    keys = {key: f"client_{metric.name}_{key}" for key in ("mean", "deviation", "worst_decile")}
    return {key: float(line[name]) for key, name in keys.items()} if keys["mean"] in line else None


def stage_table(metrics: Sequence[Mapping[str, Any]], metric: Metric = ACCURACY) -> list[dict[str, Any]]:
    """Return, stage by stage, its method, its rounds, the bytes sent and the metric at its end and at best.

    The last round of a stage is always evaluated, except where it has been interrupted.
    """
    found: list[dict[str, Any]] = []
    for line in metrics:
        if not found or found[-1]["stage"] != line["stage"]:
            head = {"stage": line["stage"], "method": line["method"], "first": line["round"]}
            found.append({**head, "value": None, "best": None})
        found[-1] |= {"last": line["round"], "rounds": line["round"] - found[-1]["first"] + 1}
        value, best = line.get(metric.key), found[-1]["best"]
        if value is not None:
            found[-1] |= {"value": value, "best": value if best is None else metric.best((best, value))}
    for stage in found:
        lines = [line for line in metrics if line["stage"] == stage["stage"]]
        stage |= {key: _total(lines, key) for key in ("bytes_down", "bytes_up")}
    return found


def lineage_facts(lineage: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what the last recombination did, None where no round recombined.

    `groups` holds a row for every layer group: `trained`, the client that trained it in that round, for each of the K
    models as they are after that recombination, and None where that client did not answer or diverged; `met`, how many
    clients have trained that copy since the models went separate ways, which is where their stage began.

    A copy trained in slot s in round r came, by the plan of round r - 1, from slot `plan[group][s]`.
    """
    if not lineage or not lineage[-1]["plan"]:
        return None
    last = lineage[-1]
    last_trained = who_trained(last)
    rounds = [line for line in lineage if line["stage"] == last["stage"]]
    rows = []
    for group, permutation in last["plan"]["permutations"].items():
        met: list[set[int]] = [set() for _ in permutation]
        place = list(range(len(permutation)))
        for line in reversed(rounds):
            sources = line["plan"]["permutations"].get(group) if line["plan"] else None
            place = [sources[slot] for slot in place] if sources else place
            who = who_trained(line)
            for copy, slot in enumerate(place):
                if (client := who[slot]) is not None:
                    met[copy].add(client)
        rows.append(
            {
                "group": group,
                "trained": [last_trained[source] for source in permutation],
                "met": [len(clients) for clients in met],
            }
        )
    clients = [one for one in last_trained if one is not None]
    head = {"round": last["round"], "first": rounds[0]["round"], "slots": len(last_trained), "clients": clients}
    return {**head, "groups": rows}


def _all_trained(
    recipe: Mapping[str, Any], environment: Mapping[str, Any], lineage: Sequence[Mapping[str, Any]]
) -> bool:
    """Return whether it is known that in every round all clients that were asked trained a model that was used."""
    training = recipe["training"]
    if training.get("availability", 1) < 1 or (environment.get("nodes") or {}).get("rounds_with_missing"):
        return False
    # What diverged is in the lineage, which need not be published.
    return all(None not in who_trained(line) for line in lineage) and (
        bool(lineage) or training.get("on_divergence", "fail") == "fail"
    )


def _node_rounds(environment: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> int:
    """Return in how many rounds the clients were nodes of Flower."""
    if "nodes" in environment:
        return int(environment["nodes"]["rounds"])
    return len(metrics) if "flwr" in environment.get("packages", {}) else 0


def _parents(recipe: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    """Return the repositories that the run's first weights came from, and the trained model that it started from."""
    base = (environment.get("base_model") or {}).get("origin")
    refs = [parse_hub(source) for source in [*(recipe["model"].get("init") or ()), *([base] if base else [])]]
    return list(dict.fromkeys(ref.repo_id for ref in refs if ref is not None))


def _privacy(recipe: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any] | None:
    options = recipe["training"].get("privacy")
    spent = {key: last[key] for key in ("epsilon", "epsilon_to_server") if key in last}
    return {"kind": "local", **options, **spent} if options and "epsilon" in spent else None


def _model_facts(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the configuration and the headers of the published models say; all of these have the same tensors."""
    slots = sorted(path.parent.name for path in folder.glob(f"{_SLOT}/*{WEIGHTS}"))
    model = open_checkpoint(folder if not slots or (folder / "config.json").exists() else folder / slots[0])
    return {
        "config": read_json(folder / "config.json") or read_json(folder / slots[0] / "config.json"),
        "adapter": recipe["model"].get("adapter"),
        "slots": slots,
        "model_bytes": model.nbytes,
        "trained_bytes": _trained_bytes(folder, slots, recipe, model),
        "parameters": _parameters(model.shapes),
    }


def _trained_bytes(folder: Path, slots: Sequence[str], recipe: Mapping[str, Any], model: Checkpoint) -> int | None:
    """Return the size of the model that a client trains; None where that is not published.

    The exact mean of adapters has another rank than each of them.
    """
    if slots:
        return open_checkpoint(folder / slots[0]).nbytes
    return None if (recipe["model"].get("adapter") or {}).get("mean", "factors") == "exact" else model.nbytes


def _parameters(shapes: Mapping[str, Sequence[int]]) -> int:
    """Return the number of trained values: those of all tensors but the statistics that normalisations keep."""
    return sum(math.prod(shape) for name, shape in shapes.items() if name.rpartition(".")[2] not in _STATISTICS)


def _partition_facts(partition: Mapping[str, Any]) -> dict[str, Any]:
    sizes = [sum(counts) for counts in partition["class_counts"]]
    classes = [sum(count > 0 for count in counts) for counts in partition["class_counts"]]
    return {
        "classes": len(partition["class_names"]) if len(partition["class_names"]) > 1 else 0,
        "clients": len(sizes),
        "examples": sum(sizes),
        "smallest": min(sizes),
        "largest": max(sizes),
        "fewest_classes": min(classes),
        "most_classes": max(classes),
    }


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, None where there is none. Raises HubError when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except RecursionError:
        raise HubError(f"{path}: damaged: it is nested too deeply", hint=_HINT) from None
    except ValueError as error:
        raise HubError(f"{path}: damaged: not JSON: {error!s:.200}", hint=_HINT) from error
