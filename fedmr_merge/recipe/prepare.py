"""From a recipe to what its run computes with: data, partition, model and first weights, all checked before round 1."""

from __future__ import annotations

import os
from typing import Any

import torch

from fedmr_merge.checkpoint.tensors import load_checkpoint
from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import weights_of
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.data.own import content_hash
from fedmr_merge.federated.data.partition import Partition, require_examples
from fedmr_merge.federated.evaluation import require_recalibration_batches
from fedmr_merge.federated.federation import Federation, open_federation
from fedmr_merge.federated.initialisation import initial_state_from
from fedmr_merge.federated.protocol import State, initial_state
from fedmr_merge.federated.rounds import begin_stage, forecast_traffic
from fedmr_merge.federated.training.flops import count_flops
from fedmr_merge.federated.training.traffic import Traffic
from fedmr_merge.hub.inputs import open_inputs, public_name
from fedmr_merge.paths import home_expanded
from fedmr_merge.recipe.schema import Recipe
from fedmr_merge.recipe.stages import Recalibrate, TrainingStage

DATA_HASH = "data_sha256"  #: key of partition.json, where the data are the user's own

_LARGE_BATCH = 1e9
"""Floating-point operations of one forward pass of a batch. Below it threads wait for each other longer than they
compute, and products are too small a part of the work for another precision to matter."""


def choose_device(wanted: str) -> torch.device:
    """Return the device to train on. Raises TrainingError when a GPU is asked for and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "a GPU was asked for and torch finds none", hint="use --device cpu, or install a CUDA build of torch"
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def visible_devices(device: torch.device) -> tuple[torch.device, ...]:
    """Return all devices that clients may be dealt to: every visible GPU, or the device alone."""
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    return tuple(torch.device("cuda", index) for index in range(count)) if count > 1 else (device,)


def make_deterministic() -> None:
    """Let the kernels of a GPU give the same bytes every time."""
    # Read when the CUDA context is made; without it some of its kernels give other bytes every time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Otherwise every new tensor is filled with NaN first. That is for finding reads of what nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def prepare(recipe: Recipe, partition: Partition | None = None, data: Data | None = None) -> Federation:
    """Load the data, deal it to the clients (unless loaded and dealt already) and build the model."""
    device = choose_device(recipe.running.device)
    if device.type == "cuda":
        make_deterministic()
    data = recipe.data.load() if data is None else data
    return open_federation(
        recipe.model,
        data,
        partition or recipe.partition.split(data, recipe.seed),
        recipe.training,
        seed=recipe.seed,
        device=device,
        cores=recipe.running.threads,
        task=recipe.task,
        devices=visible_devices(device),
    )


def load_and_split(recipe: Recipe) -> tuple[Data, Partition]:
    """Load the data and divide it among the clients, for which neither the model nor the device is needed.

    Raises DataError.
    """
    data = recipe.data.load()
    partition = recipe.partition.split(data, recipe.seed)
    require_examples(partition, data)
    return data, partition


def partition_json(data: Data, partition: Partition, *, hashed: bool = False) -> dict[str, Any]:
    """Return the partition, and how many examples of each class every client has; with `hashed`, a hash of the data.

    Where targets are not classes, all examples count as one.
    """
    found = {**partition.to_json(), **({DATA_HASH: content_hash(data)} if hashed else {})}
    if not data.num_classes:
        counts = [[size] for size in partition.sizes]
        return {**found, "class_names": ["all examples"], "class_counts": counts}
    by_class = partition.class_counts(data.targets("train").cpu().numpy(), data.num_classes)
    return {**found, "class_names": list(data.class_names), "class_counts": by_class.tolist()}


def base_json(federation: Federation) -> dict[str, Any] | None:
    """Return which trained model the federation's model starts from, with the SHA-256 of its files; None without one.

    Of a folder only its own name is there.
    """
    base = federation.architecture.base()
    if base is None:
        return None
    return {"name": public_name(base.name), "origin": base.origin, "sha256": base.sha256()}


def sensible_threads(federation: Federation) -> int:
    """Return how many threads to give to single operations.

    1 for models whose batches are done before threads have woken up, otherwise as many as there are cores.
    """
    return federation.cores if has_large_batches(federation) else 1


def has_large_batches(federation: Federation) -> bool:
    """Return whether a batch of local training computes so much that threads and other precisions pay."""
    batch = min(federation.training.batch_size, max(federation.partition.sizes))
    # One example so many times: there may be fewer in the data.
    inputs = federation.data.inputs("train", torch.zeros(batch, dtype=torch.int64, device=federation.device))
    weights = weights_of(federation.module)
    return count_flops(lambda: federation.evaluation_forward(weights, inputs)) >= _LARGE_BATCH


def check_stages(recipe: Recipe, federation: Federation) -> None:
    """Raise what any stage of a recipe would raise when it starts, before the first one does.

    Every stage is started from the initial model, or from the checkpoints that the run starts from.
    """
    state = first_state(recipe, federation)
    first_round = 1
    for position, stage in enumerate(recipe.stages):
        if isinstance(stage, TrainingStage):
            stage.length.check(federation, f"stages[{position}].{stage.name}")
            if stage.rates.lr_schedule:
                stage.rates.lr_schedule.check(f"stages[{position}].{stage.name}.lr_schedule")
            last_round = first_round + stage.length.rounds - 1
            stage.learning_rates(recipe.training, first_round).require_positive(last_round)
            first_round = last_round + 1
            state = begin_stage(federation, stage.method, state)
        elif isinstance(stage, Recalibrate):
            require_recalibration_batches(federation, stage.batches)


def first_state(recipe: Recipe, federation: Federation) -> State:
    """Return what the first stage starts from: a random model, or the checkpoints of `init`."""
    if not recipe.init:
        return initial_state(federation)
    opened = open_inputs([home_expanded(name) for name in recipe.init])
    models = [load_checkpoint(checkpoint) for checkpoint in opened]
    return initial_state_from(federation, models, [checkpoint.location for checkpoint in opened])


def parameters(federation: Federation) -> int:
    """Return the number of the model's parameters."""
    return sum(parameter.numel() for parameter in federation.module.parameters())


def model_bytes(federation: Federation) -> int:
    """Return the bytes of one model, buffers included."""
    return sum(tensor.numel() * tensor.element_size() for tensor in weights_of(federation.module).values())


def stage_traffic(recipe: Recipe, federation: Federation) -> list[tuple[TrainingStage, Traffic]]:
    """Return each training stage, and how many bytes a round of it sends and gets back."""
    state, found = first_state(recipe, federation), []
    for stage in recipe.stages:
        if isinstance(stage, TrainingStage):
            state = begin_stage(federation, stage.method, state)
            found.append((stage, forecast_traffic(federation, stage.method, state)))
    return found
