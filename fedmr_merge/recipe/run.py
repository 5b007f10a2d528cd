"""Follow a recipe: its stages in order, every round recorded, to be gone on with after any interruption."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedmr_merge.errors import RunError, TrainingError
from fedmr_merge.federated.clients import Partition
from fedmr_merge.federated.evaluation import evaluate
from fedmr_merge.federated.federation import Federation, open_federation
from fedmr_merge.federated.protocol import State, initial_state
from fedmr_merge.federated.rounds import RoundResult, run_rounds
from fedmr_merge.publish.global_model import write_global_model
from fedmr_merge.recipe.checkpoints import CheckpointWriter, Place, Saved, find_checkpoints, load_state
from fedmr_merge.recipe.run_folder import RunFolder, describe_environment
from fedmr_merge.recipe.schema import Evaluate, Publish, Recipe, TrainingStage


@dataclass(frozen=True)
class RoundDone:
    """A round is over and recorded."""

    result: RoundResult
    stage: int
    seconds: float


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


def parameters(federation: Federation) -> int:
    """Return the number of the model's parameters."""
    return sum(parameter.numel() for parameter in federation.module.parameters())


def model_bytes(federation: Federation) -> int:
    """Return the bytes of one model, buffers included."""
    return sum(tensor.numel() * tensor.element_size() for tensor in federation.module.state_dict().values())


class Run:
    """A recipe in its run folder. Use as a context manager: the folder is locked until the end."""

    def __init__(self, recipe: Recipe, out: Path, *, fresh: bool = False) -> None:
        """Open the folder, check that it belongs to the recipe, and prepare.

        Raises RunError, DataError or TrainingError.
        """
        self.recipe = recipe
        self.folder = RunFolder(out)
        try:
            if fresh:
                self.folder.clear()
            self.folder.check(recipe)
            self.folder.remove_leftovers()
            self._restore_threads()
            saved = self.folder.read_json("partition.json")
            self.federation = prepare(recipe, Partition.from_json(saved) if saved else None)
            if self.folder.is_new:
                self.folder.write_json("partition.json", partition_json(self.federation))
                self.folder.write_json("environment.json", describe_environment(self.federation.device))
                self.folder.write_text("recipe.yaml", recipe.to_yaml())  # last: it makes the folder a run folder
        except BaseException:
            self.folder.close()
            raise
        places = find_checkpoints(self.folder.checkpoints)
        self.resumed_from = places[-1] if places else None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.close()

    def _restore_threads(self) -> None:
        """Go on with as many threads as the run began with: sums are added up in another order with more."""
        before = self.folder.read_json("environment.json")
        if before is not None:
            torch.set_num_threads(int(before["threads"]))

    def changed_environment(self) -> list[str]:
        """Return what is not as it was when the run began: from then on its bytes may differ from those of a run
        in one go.
        """
        before = self.folder.read_json("environment.json")
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
        for log in ("metrics.jsonl", "lineage.jsonl"):
            self.folder.cut_log(log, done)
        state = resumed.state if resumed else initial_state(self.federation)
        writer = CheckpointWriter(self.folder.checkpoints, self.federation)
        try:
            for position, stage in enumerate(self.recipe.stages):
                if resumed and position < resumed.place.stage:
                    continue
                if not isinstance(stage, TrainingStage):
                    writer.wait()
                    yield self._other(position, stage, state, done)
                    continue
                here = resumed if resumed and position == resumed.place.stage else None
                for event in self._train(position, stage, state, done, here, writer):
                    state, done = event.result.state, event.result.round
                    yield event
        finally:
            writer.close()

    def _train(
        self, position: int, stage: TrainingStage, state: State, done: int, here: Saved | None, writer: CheckpointWriter
    ) -> Iterator[RoundDone]:
        """Run the rounds of a stage that are not done yet; `here` is the checkpoint within it that the run goes on
        from.
        """
        if here and here.stage_over:
            return
        first = here.first_round if here else done + 1
        last = first + stage.rounds - 1
        if here is None:
            state = stage.method.start(self.federation, state)
        before = time.perf_counter()
        for result in run_rounds(self.federation, stage.method, state, first_round=done + 1, rounds=last - done):
            seconds = time.perf_counter() - before
            self._record(position, result, seconds)
            if result.round == last or (result.round - first + 1) % self.recipe.running.checkpoint_every == 0:
                place = Place(result.round, position, stage.name)
                writer.write(Saved(place, result.state, first, result.round == last))
            yield RoundDone(result, position, seconds)
            before = time.perf_counter()

    def _record(self, position: int, result: RoundResult, seconds: float) -> None:
        head = {"round": result.round, "stage": position + 1, "method": result.method}
        self.folder.append("metrics.jsonl", {**head, **result.metrics, "seconds": round(seconds, 3)})
        plan = result.plan.to_json() if result.plan else None
        self.folder.append("lineage.jsonl", {**head, "clients": list(result.clients), "plan": plan})

    def _other(self, position: int, stage: Evaluate | Publish, state: State, rounds_done: int) -> StageDone:
        if rounds_done == 0:
            raise RunError(f"stages[{position}].{stage.name}: no training stage comes before it")
        if isinstance(stage, Evaluate):
            return StageDone(position, stage.name, self._evaluate(state, rounds_done))
        path = write_global_model(self.folder.path, self.federation, state.global_weights)
        return StageDone(position, stage.name, f"the global model with its card is in {path}")

    def _evaluate(self, state: State, rounds_done: int) -> str:
        found = evaluate(self.federation.evaluation_forward, state.global_weights, self.federation.data)
        self.folder.write_json(
            "evaluation.json",
            {
                "round": rounds_done,
                "split": "test",
                "examples": found.examples,
                "accuracy": found.accuracy,
                "loss": found.loss,
            },
        )
        return f"test accuracy {found.accuracy:.4f} on {found.examples:,} held-out examples"
