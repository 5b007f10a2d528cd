"""Follow a recipe: its stages in order, every round recorded, to be resumed after any interruption."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedmr_merge.errors import DataError, RunError
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.evaluation import recalibrate, recalibration_batches
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State
from fedmr_merge.federated.rounds import RoundResult, begin_stage, evaluated, run_rounds
from fedmr_merge.federated.training.local_training import Engine
from fedmr_merge.own_code import is_import_path
from fedmr_merge.publish.publication import evaluation_json
from fedmr_merge.recipe.environment import changes, run_environment
from fedmr_merge.recipe.identity import require_agreement, require_base
from fedmr_merge.recipe.prepare import (
    DATA_HASH,
    base_json,
    check_stages,
    first_state,
    partition_json,
    prepare,
    sensible_threads,
)
from fedmr_merge.recipe.publishing import Publisher, check_pushes
from fedmr_merge.recipe.recording import measured, read_best, read_rounds, record_round
from fedmr_merge.recipe.schema import Recipe
from fedmr_merge.recipe.stages import Evaluate, Publish, Recalibrate, TrainingStage
from fedmr_merge.runs.checkpoints import CheckpointWriter, Saved, remove_checkpoint
from fedmr_merge.runs.folder import RunFolder
from fedmr_merge.runs.full_disk import explained_full_disk
from fedmr_merge.runs.logs import damaged, read_object
from fedmr_merge.runs.names import (
    ENVIRONMENT,
    EVALUATION,
    METRICS,
    PARTITION,
    RECIPE,
    TASK,
    Place,
    find_checkpoints,
)
from fedmr_merge.runs.resume import newest_whole
from fedmr_merge.runs.trackers import Trackers, require_packages


@dataclass(frozen=True)
class RoundDone:
    """A round is over and recorded."""

    result: RoundResult
    """`round` is its number, `method` the stage's name, `clients` are those that were selected, and `metrics` what was
    measured: accuracies and shares from 0 to 1, seconds, bytes."""
    stage: int  #: the position of the stage in the recipe, from 0
    seconds: float  #: that the round took
    reached: str | None  #: the criterion that ended the stage with this round


@dataclass(frozen=True)
class StageDone:
    """A stage other than training is over, or something that goes with a stage: a push, the choice of a best round."""

    stage: int  #: the position of the stage in the recipe, from 0
    name: str
    message: str  #: what came of it


@dataclass(frozen=True)
class BestKept(StageDone):
    """A stage with `keep: best` is over, and what follows has the models of an earlier round."""

    metrics: Mapping[str, Any]  #: of that round


Event = RoundDone | StageDone


class Run:
    """A recipe in its run folder. Use as a context manager: the folder is locked until the end."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        fresh: bool = False,
        extend: bool = False,
        engine: Engine | None = None,
        prepare: Callable[[Recipe, Partition | None], Federation] = prepare,
    ) -> None:
        """Open the folder, check that its run can be resumed with the recipe, and prepare.

        With `fresh` a run that is there is replaced; with `extend` it may have been run with another recipe that agrees
        with this one so far. The clients train by `engine`, or by the one that the recipe names;
        `prepare` returns what the run computes with.

        Raises RunError, DataError or TrainingError.
        """
        if fresh and extend:
            raise RunError(
                "--fresh and --extend exclude each other", hint="--extend keeps the run, --fresh replaces it"
            )
        require_packages(recipe.running.log)
        self.recipe, self._engine, self._prepare = recipe, engine, prepare
        self.folder = RunFolder(out)
        self._trackers = Trackers(recipe.running.log, out, private=recipe.training.privacy is not None)
        self._notes: list[str] = []  # what a user should know about where the run is resumed
        self.resumed_from: Place | None = None  #: the checkpoint that the run is resumed from; None where it begins
        self._resumed: Saved | None = None  #: until it is trained on
        try:
            with explained_full_disk(self.folder):
                self.folder.clean()
                if fresh or self.folder.is_new:
                    self._begin()
                else:
                    self._resume(extend=extend)
        except BaseException:
            self.folder.close()
            raise
        self._publisher = Publisher(out, self.federation, recipe.stages)

    def _begin(self) -> None:
        if not self.folder.is_new:
            self.folder.refuse_others()
        self.federation = self._prepare(self.recipe, None)
        check_stages(self.recipe, self.federation)
        check_pushes(self.recipe.stages)
        torch.set_num_threads(sensible_threads(self.federation))
        if not self.folder.is_new:
            self.folder.set_aside()  # not before it is known that the new run can start
        own_data = is_import_path(self.recipe.data.name)  # or given from Python
        self.folder.write_json(PARTITION, partition_json(self.federation.data, self.federation.dealt, hashed=own_data))
        self.folder.write_json(TASK, self.federation.task.to_json())
        base = base_json(self.federation)
        environment = self._environment() | ({} if base is None else {"base_model": base})
        self.folder.write_json(ENVIRONMENT, environment)
        self.folder.write_text(RECIPE, self.recipe.to_yaml())  # last: it makes the folder a run folder
        self.folder.forget()

    def _resume(self, *, extend: bool) -> None:
        path = self.folder.path
        require_agreement(path, self.recipe, extend=extend)
        task = read_object(path, TASK)  # a damaged one is reported before anything is computed
        saved, environment = self.folder.read_json(PARTITION), self.folder.read_json(ENVIRONMENT)
        threads = int(environment["threads"])
        try:
            partition = Partition.from_json(saved)
        except DataError as error:
            raise damaged(path / PARTITION, str(error)) from error
        self.federation = self._prepare(self.recipe, partition)
        dealt = partition_json(self.federation.data, self.federation.dealt, hashed=DATA_HASH in saved)
        if dealt.get(DATA_HASH) != saved.get(DATA_HASH):
            raise RunError(
                f"{path}: the data {self.recipe.data.name} are not those that the run began with: their hash differs",
                hint="resume with the same data, choose another folder with --out, or start anew with --fresh",
                path=path,
            )
        if any(dealt[key] != saved[key] for key in ("class_names", "class_counts")):
            raise damaged(path / PARTITION, "its counts of classes are not those of its examples in the data")
        require_base(path, environment.get("base_model"), base_json(self.federation))
        # As the run began: with more threads, sums are added up in another order.
        torch.set_num_threads(threads)
        if extend:
            check_stages(self.recipe, self.federation)
        self._resumed, self._notes = newest_whole(path, self.federation)
        self.resumed_from = self._resumed.place if self._resumed else None
        if task is None:  # of version 0.1.0, or begun with the first rounds of another run
            self.folder.write_json(TASK, self.federation.task.to_json())
        if (path / RECIPE).read_text(encoding="utf-8") != self.recipe.to_yaml():
            self.folder.write_text(RECIPE, self.recipe.to_yaml())

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.close()

    def warnings(self) -> list[str]:
        """Return what a user should know about where the run is resumed, and what is not as it was when it began."""
        if not self.resumed_from:
            return list(self._notes)
        changed = changes(self.folder.read_json(ENVIRONMENT), self._environment())
        return self._notes + [f"not as when the run began: {line}; the bytes may differ" for line in changed]

    def _environment(self) -> dict[str, Any]:
        return run_environment(self.recipe, self.federation.device, self._engine)

    def execute(self) -> Iterator[Event]:
        """Run what is left of the recipe, yielding as rounds and stages are done."""
        with explained_full_disk(self.folder), contextlib.closing(self._trackers):
            yield from self._stages()

    def _stages(self) -> Iterator[Event]:
        resumed, self._resumed = self._resumed, None
        place, first = self.resumed_from, resumed.first_round if resumed else None
        done = shown = place.round if place else 0  # `shown`: the round of the models that are published
        for found in find_checkpoints(self.folder.checkpoints):
            if found.round > done:  # damaged: its rounds are run again
                remove_checkpoint(self.folder.checkpoints, found)
        self.folder.cut_logs(done)
        self._trackers.fill(self.recipe.to_json(), self.folder.read_log(METRICS))
        state = self._held(resumed.state if resumed else first_state(self.recipe, self.federation))
        del resumed  # here and below: no state is held for longer than until the next one
        writer = CheckpointWriter(self.folder.checkpoints, self.federation, self.folder.sync_logs)
        try:
            if place:
                # Again, as the push may have been interrupted.
                yield from self._pushes(place.stage, state, done)
            for message in self._publisher.left_over():
                yield StageDone(place.stage if place else 0, Publish.name, message)
            for position, stage in enumerate(self.recipe.stages):
                if place and position < place.stage:
                    continue
                if not isinstance(stage, TrainingStage):
                    writer.wait()
                    if isinstance(stage, Recalibrate):
                        state = self._recalibrate(stage, state)
                        yield StageDone(position, stage.name, "the global model has statistics of the clients' data")
                        continue
                    yield self._other(position, stage, state, shown)
                    continue
                here = first if place and position == place.stage else None
                for event in self._train(position, stage, state, done, here, writer):
                    state, done = event.result.state, event.result.round
                    yield event
                    yield from self._pushes(position, state, done)
                shown = done
                if stage.length.keep == "best":
                    writer.wait()
                    best = read_best(self.folder, self.federation, position, stage)
                    if best is not None:
                        state, shown = self._held(best.state), best.place.round
                        yield self._kept(position, shown)
        finally:
            writer.close()
        self._publisher.finish()

    def _held(self, state: State) -> State:
        """Return a state that was not trained here, on the device, and as the engine holds it."""
        state = state.to(self.federation.device)
        return replace(state, cohort=self._engine.hold(state.cohort)) if self._engine else state

    def _pushes(self, position: int, state: State, done: int) -> Iterator[StageDone]:
        """Push the branches that are due after a round."""
        for message in self._publisher.after_round(position, state, done):
            yield StageDone(position, f"round {done}", message)

    def _train(
        self, position: int, stage: TrainingStage, state: State, done: int, here: int | None, writer: CheckpointWriter
    ) -> Iterator[RoundDone]:
        """Run the rounds of a stage that are not done yet; `here` is its first round, where it is resumed."""
        first = here or done + 1
        last = first + stage.length.rounds - 1
        decide = stage.length.ended(self.federation)
        history = read_rounds(self.folder, position)
        # Not as the checkpoint has it: the recipe may have become longer since then.
        if here and (done >= last or decide(history)):
            return
        if here is None:
            state = begin_stage(self.federation, stage.method, state)
        before = time.perf_counter()
        unsaved: Saved | None = None
        try:
            rates = stage.learning_rates(self.recipe.training, first)
            rounds = run_rounds(
                self.federation,
                stage.method,
                state,
                first_round=done + 1,
                rounds=last - done,
                rates=rates,
                engine=self._engine,
            )
            del state
            for result in rounds:
                reached = decide([*history, {"round": result.round, **result.metrics}])
                over = result.round == last or reached is not None
                if over or self._publisher.is_due(position, result.round):
                    result = evaluated(self.federation, result)
                seconds = time.perf_counter() - before
                history.append(record_round(self.folder, position, result, seconds))
                best = stage.length.best_round(self.federation, history)
                unsaved = Saved(Place(result.round, position, stage.name), result.state, first, over, best)
                is_due = (result.round - first + 1) % self.recipe.running.checkpoint_every == 0
                if over or is_due or best == result.round:
                    writer.write(unsaved)
                    unsaved = None
                self._trackers.add(history[-1])
                yield RoundDone(result, position, seconds, reached)
                if over:
                    return
                before = time.perf_counter()
        finally:
            if unsaved:  # interrupted, or a client diverged: no round that is done is lost
                writer.write(unsaved)

    def _recalibrate(self, stage: Recalibrate, state: State) -> State:
        batches = recalibration_batches(self.federation, stage.batches)
        return replace(state, global_weights=recalibrate(self.federation.module, state.global_weights, batches))

    def _kept(self, position: int, round: int) -> BestKept:
        metric, line = self.federation.task.decisive, self.folder.read_log(METRICS)[round - 1]
        value = metric.shown(line[f"validation_{metric.name}"])
        message = f"keeps the models of round {round}, its best one: validation {metric.name} {value}"
        return BestKept(position, self.recipe.stages[position].name, message, measured(line))

    def _other(self, position: int, stage: Evaluate | Publish, state: State, round: int) -> StageDone:
        if isinstance(stage, Evaluate):
            return StageDone(position, stage.name, self._evaluate(state, round))
        return StageDone(position, stage.name, self._publisher.stage(position, stage, state, round))

    def _evaluate(self, state: State, round: int) -> str:
        found = evaluation_json(self.federation, state, round)
        self.folder.write_json(EVALUATION, found)
        metric = self.federation.task.decisive
        return f"test {metric.name} {found[metric.name]:.4f} on {found['examples']:,} held-out examples"
