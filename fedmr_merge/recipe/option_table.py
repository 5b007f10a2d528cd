"""The page of the documentation about which training option works with which method and engine.

Every cell is tried: a small federation is opened with the option, and a stage of the method is begun in it. What is
refused is refused in the same words as in a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.data.images import ImageData
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.federation import Federation, open_federation
from fedmr_merge.federated.models.cnn import Cnn
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import begin_stage
from fedmr_merge.federated.training.options import Training
from fedmr_merge.federated.training.participation import Stragglers
from fedmr_merge.federated.training.privacy import Privacy, require_accountant
from fedmr_merge.federated.training.schedule import LrSchedule

EngineName = Literal["loop", "vmap"]
ENGINES: tuple[EngineName, ...] = ("loop", "vmap")

_CLIENTS, _EACH = 4, 6  # clients, and examples of each


@dataclass(frozen=True)
class Row:
    """A row of the table: an option at a value that is not its default, with the options that it needs."""

    label: str  #: as a recipe has it
    options: Mapping[str, Any] = field(default_factory=dict)


ROWS = (
    Row("`local_epochs`", {"local_epochs": 2}),
    Row("`local_steps`", {"local_steps": 3}),
    Row("`batch_size`", {"batch_size": 2}),
    Row("`gradient_accumulation_steps`", {"gradient_accumulation_steps": 2}),
    Row("`last_batch`", {"last_batch": "drop"}),
    Row("`optimizer: adam`, `betas`, `eps`", {"optimizer": "adam", "betas": (0.8, 0.9), "eps": 1e-3}),
    Row("`optimizer: adamw`", {"optimizer": "adamw"}),
    Row("`lr`", {"lr": 0.02}),
    Row("`lr_schedule`", {"lr_schedule": LrSchedule(kind="exponential", factor=0.5)}),
    Row("`momentum`", {"momentum": 0.5}),
    Row("`nesterov`", {"nesterov": True}),
    Row("`weight_decay`", {"weight_decay": 0.01}),
    Row("`clip_norm`", {"clip_norm": 0.1}),
    Row("`label_smoothing`", {"label_smoothing": 0.1}),
    Row("`class_weights`", {"class_weights": (1.0, 2.0)}),
    Row("`availability`", {"availability": 0.5}),
    Row("`stragglers`", {"stragglers": Stragglers(share=0.5, steps=1)}),
    Row("`evaluate_every`", {"evaluate_every": 2}),
    Row("`validation_share`, `validation_at`", {"validation_share": 0.2, "validation_at": "clients"}),
    Row("`precision: bf16`", {"precision": "bf16"}),
    Row("`precision: tf32`", {"precision": "tf32"}),
    Row("`compile`", {"compile": True}),
    Row("`cohort_chunk`", {"cohort_chunk": 2}),
    Row("`on_divergence: keep`", {"on_divergence": "keep", "divergence_loss": 100.0}),
    Row("`on_divergence: drop`", {"on_divergence": "drop", "divergence_loss": 100.0}),
    Row("`privacy`, `kind: local`", {"privacy": Privacy(clip=1.0, noise_multiplier=1.0)}),
    Row("`privacy`, `kind: central`", {"privacy": Privacy(clip=1.0, noise_multiplier=1.0, kind="central")}),
)
"""`clients_per_round` and `engine` are what every cell is tried with."""


def option_table_page() -> str:
    """Return the page, in Markdown. Raises TrainingError where the package that accounts for privacy is missing."""
    require_accountant()
    methods, reasons = ALGORITHMS.names(), list[str]()
    lines = ["| | " + " | ".join(f"`{name}`" for name in methods) + " |", "| --- |" + " --- |" * len(methods)]
    for row in ROWS:
        found = refusals(row)
        cells = [_cell(found[name], reasons) for name in methods]
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    return (
        "\n\n".join(
            [
                "# Which option works with which method",
                "Every option of `training` beside every method, tried with both engines on a CPU when this page was "
                "made: `✓` works with `loop` and `vmap`, `loop` or `vmap` with that engine alone, and a number is the "
                "reason why the combination is refused, before round 1. `fedmr-merge run --dry-run` reports it, too.",
                "\n".join(lines),
                "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)),
            ]
        )
        + "\n"
    )


def small_federation(engine: EngineName, options: Mapping[str, Any]) -> Federation:
    """Return a federation of random pictures of two classes, with these options of training.

    Raises TrainingError when they are refused.
    """
    generator = torch.Generator().manual_seed(0)
    examples = _CLIENTS * _EACH
    pictures = torch.randint(0, 256, (examples, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(examples) % 2
    data = ImageData(
        train_images=pictures,
        train_labels=labels,
        test_images=pictures,
        test_labels=labels,
        class_names=("a", "b"),
        mean=(0.5,),
        std=(0.3,),
    )
    partition = Partition.of([torch.arange(client * _EACH, (client + 1) * _EACH).numpy() for client in range(_CLIENTS)])
    training = Training(**{"clients_per_round": 2, "batch_size": 4, "engine": engine, **options})
    return open_federation(Cnn(), data, partition, training, seed=0)


def refusals(row: Row) -> dict[str, dict[EngineName, str | None]]:
    """Return for every method and engine why an option is refused, in the words of a run; None where it works."""
    found: dict[str, dict[EngineName, str | None]] = {name: {} for name in ALGORITHMS.names()}
    for engine in ENGINES:
        try:
            federation = small_federation(engine, row.options)
        except TrainingError as error:
            for of_method in found.values():
                of_method[engine] = str(error)
            continue
        for name, of_method in found.items():
            of_method[engine] = _refusal(federation, ALGORITHMS.find(name)())
    return found


def _refusal(federation: Federation, algorithm: Algorithm) -> str | None:
    try:
        begin_stage(federation, algorithm, initial_state(federation))
    except TrainingError as error:
        return str(error)
    return None


def _cell(of_engines: Mapping[EngineName, str | None], reasons: list[str]) -> str:
    """Return a cell; new reasons are added to those that have a number already."""
    works = [engine for engine, reason in of_engines.items() if reason is None]
    if len(works) == len(ENGINES):
        return "✓"
    if works:
        return f"`{works[0]}`"
    numbers = list[int]()
    for reason in dict.fromkeys(reason for reason in of_engines.values() if reason is not None):
        if reason not in reasons:
            reasons.append(reason)
        numbers.append(reasons.index(reason) + 1)
    return ", ".join(map(str, numbers))
