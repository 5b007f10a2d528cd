"""A JSON schema of recipes, for editors: made from the fields of the plug-ins, with their bounds and comments."""

from __future__ import annotations

from typing import Any

from fedmr_merge.federated.catalogue import ALGORITHMS, ARCHITECTURES, DATA_SETS, PARTITIONS, TASKS, Catalogue
from fedmr_merge.federated.training.options import Training
from fedmr_merge.option_docs import describe_options, summary
from fedmr_merge.options import json_schema
from fedmr_merge.recipe.deployment import Deployment
from fedmr_merge.recipe.schema import PRESET, Running
from fedmr_merge.recipe.stages import OTHER_STAGES, Length, Rates

_NAME = "^[A-Za-z0-9][A-Za-z0-9._-]*$"


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe: unknown keys are refused, as by fedmr-merge itself."""
    definitions: dict[str, Any] = {}
    partition = _choice(PARTITIONS, "kind", definitions)
    data = _choice(DATA_SETS, "name", definitions, {"partition": partition}, ("partition",))
    init: dict[str, Any] = {
        "description": "the checkpoint that all slots start from, or a list of one for each slot",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
    }
    properties = {
        "name": {"type": "string", "pattern": _NAME, "description": "the run folder is runs/NAME"},
        "seed": {"type": "integer", "minimum": 0, "default": 0, "description": "decides every random draw"},
        "preset": {
            "type": ["string", "null"],
            "pattern": f"^{PRESET}$",
            "description": "whose settings these are and how they differ from others'; stands in cards and reports",
        },
        "data": data,
        "model": _choice(ARCHITECTURES, "name", definitions, {"init": init}),
        "task": _choice(TASKS, "name", definitions),
        "training": _options((Training, Running), definitions),
        "deployment": {
            **_options((Deployment,), definitions),
            "description": "how the recipe is run on several machines, with `run --on flower`",
        },
        "stages": {"type": "array", "minItems": 1, "items": _stage(definitions), "description": "done in this order"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of fedmr-merge",
        **_object(properties, ["name", "data", "model", "stages"]),
        "$defs": dict(sorted(definitions.items())),
    }


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _options(classes: tuple[type[Any], ...], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a mapping whose keys are the fields of these dataclasses; `null` stands for no options."""
    properties: dict[str, Any] = {}
    required: list[str] = []
    for cls in classes:
        schema = json_schema(cls)
        definitions.update(schema.get("$defs", {}))
        properties |= schema.get("properties", {})
        required += schema.get("required", [])
        for option in describe_options(cls):
            if option.doc:
                properties[option.name]["description"] = option.doc
    found = _object(properties, required)
    return found if required else {**found, "type": ["object", "null"]}


def _choice(
    catalogue: Catalogue[Any],
    key: str,
    definitions: dict[str, Any],
    more: dict[str, Any] | None = None,
    required: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the schema of a mapping whose `key` names a plug-in and whose other keys are that plug-in's options."""
    found = []
    for name, cls in catalogue.usable():
        plugin, _, argument = name.partition(":")
        named = {"pattern": f"^{plugin}:.+$"} if argument else {"const": name}
        options = _options((cls,), definitions)
        properties = {key: {"type": "string", **named}, **options["properties"], **(more or {})}
        one = _object(properties, [key, *options["required"], *required])
        found.append({"title": name, "description": summary(cls), **one})
    own = {key: {"type": "string", "pattern": _own_code(catalogue)}, **(more or {})}
    found.append(
        {
            "title": "package.module:Name",
            "description": "code of your own, by its import path; the other keys are what it is called with",
            **_object(own, [key, *required]),
            "additionalProperties": True,
        }
    )
    return {"oneOf": found}


def _stage(definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, cls in ALGORITHMS.usable():
        properties[name] = {**_options((Length, Rates, cls), definitions), "description": summary(cls)}
    for name, stage in OTHER_STAGES.items():
        properties[name] = {**_options((stage,), definitions), "description": summary(stage)}
    own = {_own_code(ALGORITHMS): {"type": "object", "description": "a method of your own, by its import path"}}
    return {**_object(properties, []), "patternProperties": own, "minProperties": 1, "maxProperties": 1}


def _own_code(catalogue: Catalogue[Any]) -> str:
    """Return the pattern of import paths; plug-ins whose names have an argument look alike."""
    taken = "".join(f"(?!{name}:)" for name in sorted(catalogue.arguments))
    return f"^{taken}[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$"
