"""Whether a run can be repeated from what is published of it, and what it needs besides that otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmr_merge.errors import listed
from fedmr_merge.hub.listing import parse_hub
from fedmr_merge.own_code import GIVEN


def why_not_repeatable(recipe: Mapping[str, Any], environment: Mapping[str, Any]) -> str | None:
    """Return why nobody can repeat a run from its published recipe, as the end of a sentence; None where one can.

    Whoever does has the files of the data, where the recipe names some.
    """
    if recipe["data"]["partition"]["kind"] == "nodes":
        return "the data of its clients stayed on their own machines"
    if missing := (environment.get("nodes") or {}).get("rounds_with_missing"):
        return f"in {missing} of its rounds not all clients answered"
    lacking = list(dict.fromkeys(_lacking(recipe)))
    return f"it needs {listed(lacking, between=', ')}" if lacking else None


def _lacking(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a published recipe names and a stranger does not have; of a file, the name is all that it holds."""
    data, model = recipe["data"], recipe["model"]
    for name in _own_code(recipe):
        yield f"what was given from Python as {name}" if name.startswith(f"{GIVEN}:") else f"the code of {name}"
    if data["partition"]["kind"] == "file":
        yield f"the partition file {data['partition'].get('path')}"
    tokenizer = data.get("tokenizer")
    if isinstance(tokenizer, str) and tokenizer != "bytes" and parse_hub(tokenizer) is None:
        yield f"the tokenizer {tokenizer}"
    library, _, source = str(model["name"]).partition(":")
    if library == "transformers" and parse_hub(source) is None:
        yield f"the model {source}"
    trained = [model["weights"]] if library == "timm" and model.get("weights") else []
    for weights in (*trained, *(model.get("init") or ())):
        if parse_hub(weights) is None:
            yield f"the first weights {weights}"
    for stage in recipe["stages"]:
        for options in stage.values():
            if str(options.get("rule", "")).endswith((".yaml", ".yml")):
                yield f"the layer rule {Path(options['rule']).name}"


def _own_code(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the user's own code that a recipe calls."""
    from fedmr_merge.federated.catalogue import (  # imports torch
        ALGORITHMS,
        ARCHITECTURES,
        DATA_SETS,
        PARTITIONS,
        TASKS,
        Catalogue,
    )
    from fedmr_merge.runs.public import is_own_code

    data = recipe["data"]
    named: list[tuple[Catalogue[Any], Any]] = [
        (DATA_SETS, data["name"]),
        (PARTITIONS, data["partition"]["kind"]),
        (ARCHITECTURES, recipe["model"]["name"]),
    ]
    named += [(TASKS, recipe["task"]["name"])] if recipe.get("task") else []
    named += [(ALGORITHMS, name) for stage in recipe["stages"] for name in stage]
    return (str(name) for catalogue, name in named if is_own_code(catalogue, str(name)))
