"""The page of the documentation about everything that a recipe can name, made from the plug-ins themselves."""

from __future__ import annotations

from fedmr_merge.option_docs import OptionDoc
from fedmr_merge.recipe.described import KINDS, Described

_HEADINGS = {
    "methods": ("Methods", "A stage of a recipe names a method and its options: `- fedprox: {rounds: 50, mu: 0.1}`."),
    "stages": (
        "Stages",
        "`stages: [{fedmr: {rounds: 50, keep: best}}, {evaluate: {}}]`: `METHOD` stands for the name of any method.",
    ),
    "training": ("Training", "`training: {local_epochs: 5, privacy: {clip: 1.0, noise_multiplier: 1.1}}`."),
    "models": ("Models", "`model: {name: resnet20}`, with the options beside the name."),
    "data": ("Data sets", "`data: {name: cifar10, …}`, with the options beside the name."),
    "tasks": (
        "Tasks",
        "`task: {name: image-classification}`. A data set has a task of its own, so that a recipe seldom names one.",
    ),
    "partitions": (
        "Partitions",
        "`data: {…, partition: {kind: dirichlet, alpha: 0.5}}` deals the examples to clients.",
    ),
    "deployment": (
        "Deployment",
        "`deployment: {timeout_seconds: 60}`, for `run --on flower`.",
    ),
    "rules": ("Layer rules", "`--rule NAME`, or `rule: NAME` of a method, says which tensors move together."),
}


def reference_page() -> str:
    """Return the page, in Markdown."""
    parts = [
        "# Everything that a recipe can name",
        "Methods, other stages, training, models, data sets, tasks, partitions, deployment and layer rules: all "
        "options, with their types, defaults and meaning. `fedmr-merge list` shows the same in a terminal.",
    ]
    for kind, (title, how) in _HEADINGS.items():
        parts += [f"## {title}", how]
        for found in KINDS[kind]():
            parts += _section(found)
    return "\n\n".join(parts) + "\n"


def _section(found: Described) -> list[str]:
    summary = found.summary[:1].upper() + found.summary[1:]
    parts = [f"### `{found.name}`", summary if summary.endswith((".", "…")) else f"{summary}."]
    if found.options:
        rows = ["| option | type | default | meaning |", "| --- | --- | --- | --- |", *map(_row, found.options)]
        parts.append("\n".join(rows))
    return parts


def _row(option: OptionDoc) -> str:
    cells = (f"`{option.name}`", option.type, f"`{option.default}`", option.doc)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
