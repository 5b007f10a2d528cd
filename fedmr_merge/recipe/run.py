"""Follow a recipe: its stages in order, every round recorded, to be gone on with after any interruption."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedmr_merge.checkpoint.tensors import load_checkpoint
from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.evaluation import recalibrate, recalibration_batches, require_recalibration_batches
from fedmr_merge.federated.federation import Federation, open_federation
from fedmr_merge.federated.initialisation import initial_state_from
from fedmr_merge.federated.protocol import State, initial_state
from fedmr_merge.federated.rounds import RoundResult, begin_stage, forecast_traffic, run_rounds
from fedmr_merge.federated.training.traffic import Traffic
from fedmr_merge.hub.inputs import open_inputs
from fedmr_merge.publish.publication import evaluation_json
from fedmr_merge.recipe.publishing import Publisher, check_pushes
from fedmr_merge.recipe.schema import Evaluate, Publish, Recalibrate, Recipe, TrainingStage
from fedmr_merge.runs.checkpoints import CheckpointWriter, Saved, load_state
from fedmr_merge.runs.folder import RunFolder, describe_environment
from fedmr_merge.runs.names import (
    ENVIRONMENT,
    EVALUATION,
    LINEAGE,
    LOGS,
    METRICS,
    PARTITION,
    RECIPE,
    Place,
    find_checkpoints,
)

#: Of one forward pass of a batch. Below it threads wait for each other longer than they compute.
_FLOPS_WORTH_THREADS = 1e9


@dataclass(frozen=True)
class RoundDone:
    """A round is over and recorded."""

    result: RoundResult
    stage: int
    seconds: float
    reached: str | None  #: the criterion that ended the stage with this round


@dataclass(frozen=True)
class StageDone:
    """A stage other than training is over; `message` says what it made."""

    stage: int
    name: str
    message: str


Event = RoundDone | StageDone


def choose_device(wanted: str) -> torch.device:
    """Return the device to train on. Raises TrainingError when a GPU is asked for and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "a GPU was asked for and torch finds none", hint="use --device cpu, or install a CUDA build of torch"
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def prepare(recipe: Recipe, partition: Partition | None = None) -> Federation:
    """Load the data, deal it to the clients (unless dealt already) and build the model."""
    device = choose_device(recipe.running.device)
    if device.type == "cuda":
        # Read when the CUDA context is made; without it some of its kernels give other bytes every time.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    data = recipe.data.load()
    return open_federation(
        recipe.model,
        data,
        partition or recipe.partition.split(data, recipe.seed),
        recipe.training,
        seed=recipe.seed,
        device=device,
        cores=recipe.running.threads,
    )


def partition_json(federation: Federation) -> dict[str, Any]:
    """Return the partition, and how many examples of each class every client has."""
    data = federation.data
    counts = federation.partition.class_counts(data.train_labels.cpu().numpy(), data.num_classes)
    return {
        **federation.partition.to_json(),
        "class_names": list(data.class_names),
        "class_counts": counts.tolist(),
    }


def sensible_threads(federation: Federation) -> int:
    """Return how many threads to give to single operations: 1 for models whose batches are done before threads have
    woken up, else as many as there are cores.
    """
    batch = min(federation.training.batch_size, max(federation.partition.sizes))
    images = federation.data.train_images[:1].repeat(batch, 1, 1, 1)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        federation.evaluation_forward(federation.module.state_dict(), federation.data.normalise(images))
    return 1 if counter.get_total_flops() < _FLOPS_WORTH_THREADS else federation.cores


def check_stages(recipe: Recipe, federation: Federation) -> None:
    """Raise what any stage of a recipe would raise when it starts, before the first one does.

    Every stage is started from the initial model, or from the checkpoints that the run starts from.
    """
    state = first_state(recipe, federation)
    for stage in recipe.stages:
        if isinstance(stage, TrainingStage):
            if stage.length.until:
                stage.length.until.check(federation)
            state = begin_stage(federation, stage.method, state)
        elif isinstance(stage, Recalibrate):
            require_recalibration_batches(federation, stage.batches)


def first_state(recipe: Recipe, federation: Federation) -> State:
    """Return what the first stage starts from: a random model, or the checkpoints of `init`."""
    if not recipe.init:
        return initial_state(federation)
    opened = open_inputs(recipe.init)
    models = [load_checkpoint(checkpoint) for checkpoint in opened]
    return initial_state_from(federation, models, [checkpoint.source for checkpoint in opened])


def parameters(federation: Federation) -> int:
    """Return the number of the model's parameters."""
    return sum(parameter.numel() for parameter in federation.module.parameters())


def model_bytes(federation: Federation) -> int:
    """Return the bytes of one model, buffers included."""
    return sum(tensor.numel() * tensor.element_size() for tensor in federation.module.state_dict().values())


def stage_traffic(recipe: Recipe, federation: Federation) -> dict[str, Traffic]:
    """Return how many bytes a round of each training stage sends and gets back, by the name of its method."""
    state, found = first_state(recipe, federation), {}
    for stage in recipe.stages:
        if isinstance(stage, TrainingStage):
            state = begin_stage(federation, stage.method, state)
            found[stage.name] = forecast_traffic(federation, stage.method, state)
    return found


class Run:
    """A recipe in its run folder. Use as a context manager: the folder is locked until the end."""

    def __init__(self, recipe: Recipe, out: Path, *, fresh: bool = False) -> None:
        """Open the folder, check that it belongs to the recipe, and prepare.

        Raises RunError, DataError or TrainingError.
        """
        self.recipe = recipe
        self.folder = RunFolder(out)
        try:
            self.folder.check(recipe.to_yaml(), fresh=fresh)
            self.folder.remove_leftovers()
            saved = None if fresh else self.folder.read_json(PARTITION)
            self.federation = prepare(recipe, Partition.from_json(saved) if saved else None)
            if fresh or self.folder.is_new:
                check_stages(recipe, self.federation)
                check_pushes(recipe.stages)
            if fresh:
                self.folder.clear()  # not before it is known that the new run can start
            torch.set_num_threads(self._threads())
            if self.folder.is_new:
                self.folder.write_json(PARTITION, partition_json(self.federation))
                self.folder.write_json(ENVIRONMENT, describe_environment(self.federation.device))
                self.folder.write_text(RECIPE, recipe.to_yaml())  # last: it makes the folder a run folder
        except BaseException:
            self.folder.close()
            raise
        places = find_checkpoints(self.folder.checkpoints)
        self.resumed_from = places[-1] if places else None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.close()

    def _threads(self) -> int:
        """How many threads to compute with: as the run began, since sums are added up in another order with more."""
        before = self.folder.read_json(ENVIRONMENT)
        if before is not None:
            return int(before["threads"])
        return sensible_threads(self.federation)

    def changed_environment(self) -> list[str]:
        """Return what is not as it was when the run began: from then on its bytes may differ from those of a run
        in one go.
        """
        before = self.folder.read_json(ENVIRONMENT) or {"packages": {}}
        now = describe_environment(self.federation.device)
        flat = [({**side, **side["packages"]}) for side in (before, now)]
        return [
            f"{key}: {flat[0][key]} → {flat[1][key]}"
            for key in flat[1]
            if key != "packages" and flat[0].get(key) != flat[1][key]
        ]

    def execute(self) -> Iterator[Event]:
        """Run what is left of the recipe, yielding as rounds and stages are done."""
        resumed = load_state(self.folder.checkpoints, self.resumed_from) if self.resumed_from else None
        done = resumed.place.round if resumed else 0
        for log in LOGS:
            self.folder.cut_log(log, done)
        state = (resumed.state if resumed else first_state(self.recipe, self.federation)).to(self.federation.device)
        writer = CheckpointWriter(self.folder.checkpoints, self.federation)
        publisher = Publisher(self.folder.path, self.federation, self.recipe.stages)
        try:
            if resumed:
                yield from self._pushes(resumed.place.stage, publisher, state, done, left_over=True)
            for position, stage in enumerate(self.recipe.stages):
                if resumed and position < resumed.place.stage:
                    continue
                if not isinstance(stage, TrainingStage):
                    writer.wait()
                    if isinstance(stage, Recalibrate):
                        state = self._recalibrate(stage, state)
                        yield StageDone(position, stage.name, "the global model has statistics of the clients' data")
                        continue
                    yield self._other(position, stage, state, done, publisher)
                    continue
                here = resumed if resumed and position == resumed.place.stage else None
                for event in self._train(position, stage, state, done, here, writer):
                    state, done = event.result.state, event.result.round
                    yield event
                    yield from self._pushes(position, publisher, state, done)
        finally:
            writer.close()
        publisher.finish()

    def _pushes(
        self, position: int, publisher: Publisher, state: State, done: int, *, left_over: bool = False
    ) -> Iterator[StageDone]:
        """Push the branches that are due after a round; again where a run goes on from it, as that may have been
        interrupted, and then what is left over from before.
        """
        for message in publisher.after_round(position, state, done):
            yield StageDone(position, f"round {done}", message)
        for message in publisher.left_over(position) if left_over else ():
            yield StageDone(position, Publish.name, message)

    def _train(
        self, position: int, stage: TrainingStage, state: State, done: int, here: Saved | None, writer: CheckpointWriter
    ) -> Iterator[RoundDone]:
        """Run the rounds of a stage that are not done yet; `here` is the checkpoint within it that the run goes on
        from.
        """
        if here and here.stage_over:
            return
        first = here.first_round if here else done + 1
        last = first + stage.length.rounds - 1
        until = stage.length.until
        history = [line for line in self.folder.read_log(METRICS) if line["stage"] == position + 1]
        if here is None:
            state = begin_stage(self.federation, stage.method, state)
        before = time.perf_counter()
        unsaved: Saved | None = None
        try:
            for result in run_rounds(self.federation, stage.method, state, first_round=done + 1, rounds=last - done):
                seconds = time.perf_counter() - before
                history.append(self._record(position, result, seconds))
                reached = until.reached(history) if until else None
                over = result.round == last or reached is not None
                unsaved = Saved(Place(result.round, position, stage.name), result.state, first, over)
                if over or (result.round - first + 1) % self.recipe.running.checkpoint_every == 0:
                    writer.write(unsaved)
                    unsaved = None
                yield RoundDone(result, position, seconds, reached)
                if over:
                    return
                before = time.perf_counter()
        finally:
            if unsaved:  # interrupted, or a client diverged: no round that is done is lost
                writer.write(unsaved)

    def _record(self, position: int, result: RoundResult, seconds: float) -> dict[str, Any]:
        """Write down a round; returns its line of metrics.jsonl."""
        head = {"round": result.round, "stage": position + 1, "method": result.method}
        metrics = {**head, **result.metrics, "seconds": round(seconds, 3)}
        self.folder.append(METRICS, metrics)
        plan = result.plan.to_json() if result.plan else None
        line = {**head, "clients": list(result.clients), "plan": plan}
        if result.diverged:
            line["diverged"] = {str(client): fault for client, fault in result.diverged.items()}
        self.folder.append(LINEAGE, line)
        return metrics

    def _recalibrate(self, stage: Recalibrate, state: State) -> State:
        batches = recalibration_batches(self.federation, stage.batches)
        return replace(state, global_weights=recalibrate(self.federation.module, state.global_weights, batches))

    def _other(
        self, position: int, stage: Evaluate | Publish, state: State, rounds_done: int, publisher: Publisher
    ) -> StageDone:
        if isinstance(stage, Evaluate):
            return StageDone(position, stage.name, self._evaluate(state, rounds_done))
        return StageDone(position, stage.name, publisher.stage(stage, state, rounds_done))

    def _evaluate(self, state: State, rounds_done: int) -> str:
        found = evaluation_json(self.federation, state, rounds_done)
        self.folder.write_json(EVALUATION, found)
        return f"test accuracy {found['accuracy']:.4f} on {found['examples']:,} held-out examples"
