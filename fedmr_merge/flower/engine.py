"""The engine that trains every client on a machine of its own.

What a client does is what it does in one process: `client.py` rebuilds the round's local training for it and runs
engine `loop`. The server sends out the models, checks what comes back, and deals with clients that do not answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.training.local_training import Answers, Engine, LocalTraining
from fedmr_merge.flower.arrays import Form, to_array
from fedmr_merge.flower.base_weights import BaseWeights, without
from fedmr_merge.flower.exchange import Exchange, Outgoing, exchange
from fedmr_merge.flower.handle_cohort import Arrays, HandleCohort, content_hash
from fedmr_merge.flower.nodes import NO_NODE_NAMED, Binding, FoundNodes
from fedmr_merge.flower.reply_files import ReplyFile
from fedmr_merge.flower.wire import (
    TRAIN,
    Expected,
    Instruction,
    ReplyFacts,
    Side,
    pack_instruction,
    unpack_reply,
)
from fedmr_merge.recipe.deployment import Deployment
from fedmr_merge.recipe.identity import identity
from fedmr_merge.recipe.schema import Recipe
from fedmr_merge.recipe.stages import TrainingStage

if TYPE_CHECKING:
    from flwr.serverapp import Grid


@dataclass
class _Round:
    """What is known of the slots of a round so far."""

    task: LocalTraining
    sent: list[Arrays]  #: the dispatched models
    staying: Mapping[str, Any]  #: the arrays of the model that do not travel
    base_sha256: str  #: the hash of what does not travel; "" where there is nothing
    forms: Mapping[str, Form]  #: of the tensors that travel
    file: ReplyFile  #: what came back
    facts: dict[int, ReplyFacts] = field(default_factory=dict)
    models: dict[int, Arrays] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)  #: slot → why its client does not count
    replaced: dict[int, str] = field(default_factory=dict)  #: client that was replaced → why
    ignored: list[str] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0


class FlowerEngine(Engine):
    """Trains the models of a cohort at the nodes of a Flower federation.

    Args:
        grid: Flower's way to the nodes, or anything that behaves like it.
        recipe: The recipe that both sides follow.
        folder: Where files with the models of a round are written; left out, the system's folder for temporary files.
    """

    packages = ("flwr",)

    def __init__(self, grid: Grid, recipe: Recipe, folder: Path | None = None) -> None:
        self._grid, self._recipe, self._folder = grid, recipe, folder
        self._deployment = recipe.deployment or Deployment()
        self._side = Side.here(identity(recipe))
        self._base: BaseWeights | None = None
        self._last_file: ReplyFile | None = None  #: of the round before, whose models are dispatched

    def hold(self, cohort: Cohort) -> Cohort:
        """Return the cohort with its models in a file, as those are that come back from clients."""
        if isinstance(cohort, HandleCohort) or cohort.slots == 1:
            return cohort
        forms = _forms(cohort)
        file = ReplyFile(self._folder, cohort.slots, forms)
        models = [{name: to_array(tensor) for name, tensor in cohort.slot(k).items()} for k in range(cohort.slots)]
        for slot, model in enumerate(models):
            file.keep(slot, model)
        self._last_file = file
        return HandleCohort(models, forms)

    def answers(self, task: LocalTraining) -> Answers:
        """Return what comes back from the clients of a round; `deployment.on_missing` says what becomes of the others.

        Raises TrainingError when a client does not answer and `on_missing` is `fail`.
        """
        base = self._base = self._base or BaseWeights(task.federation)
        stays = base.are_in(task.cohort)
        staying, sha256 = (base.arrays, base.sha256) if stays else ({}, base.sha256_beside)
        forms = {name: form for name, form in _forms(task.cohort).items() if name not in staying}
        file = ReplyFile(self._folder, len(task.clients), forms)
        current = _Round(task, _encoded(task.cohort, staying), staying, sha256, forms, file)
        self._ask(current, [slot for slot in range(len(task.clients)) if not task.absent[slot]])
        while current.reasons and self._deployment.on_missing == "resample":
            if not self._replace(current):
                break
        if current.reasons and self._deployment.on_missing == "fail":
            slot, reason = next(iter(current.reasons.items()))
            others = f" (and {len(current.reasons) - 1} more clients)" if len(current.reasons) > 1 else ""
            raise TrainingError(
                f"client {current.task.clients[slot]} is missing in round {task.round}: {reason}{others}",
                hint="the same command resumes the run; deployment.on_missing: keep or resample continues without "
                "such clients",
                client=current.task.clients[slot],
                round=task.round,
            )
        return self._collected(current)

    def _ask(self, current: _Round, slots: Sequence[int]) -> None:
        """Ask the clients of some slots to train, and keep what comes back."""
        task = current.task
        binding = Binding.of(len(task.federation.partition), self._deployment.clients)
        nodes = FoundNodes.among(self._grid.get_nodes(), binding)
        shared = {
            family: {name: to_array(tensor) for name, tensor in tensors.items()}
            for family, tensors in task.context.shared.items()
        }
        found_slots = []
        for slot in slots:
            client = task.clients[slot]
            if client in nodes.ids:
                found_slots.append(slot)
            else:
                current.reasons[slot] = nodes.faults.get(client, NO_NODE_NAMED)

        def outgoing() -> Iterator[Outgoing]:
            for slot in found_slots:
                yield self._outgoing(current, slot, nodes.ids[task.clients[slot]], shared)
                if self._last_file:
                    self._last_file.release_pages()

        def read(slot: int, content: Any) -> tuple[ReplyFacts, Arrays | None]:
            expected = Expected(
                side=self._side,
                round=task.round,
                client=task.clients[slot],
                examples=task.examples[slot],
                steps=len(task.step_sizes(slot)),
                forms=current.forms,
            )
            facts, model = unpack_reply(content, expected)
            if model is not None:
                current.file.keep(slot, model)
            return facts, model

        found = exchange(self._grid, outgoing(), self._deployment.timeout_seconds, read)
        self._keep(current, found)

    def _outgoing(self, current: _Round, slot: int, node: int, shared: Mapping[str, Mapping[str, Any]]) -> Outgoing:
        from flwr.app import Message

        task = current.task
        instruction = Instruction(
            version=self._side.version,
            recipe=self._side.recipe,
            stage=_stage_of(self._recipe, task),
            round=task.round,
            slot=slot,
            slots=len(task.clients),
            client=task.clients[slot],
            lr=task.learning_rate,
            threads=torch.get_num_threads(),
            base=current.base_sha256,
        )
        model = without(current.sent[slot], current.staying)
        content = pack_instruction(instruction, model, task.context_of(slot), shared)
        current.bytes_sent += sum(len(a.data) for record in content.array_records.values() for a in record.values())
        # It expires before the wait is over, which begins when all are sent: a straggler must not work on a model that
        # has moved on.
        message = Message(content, node, TRAIN, ttl=self._deployment.timeout_seconds, group_id=str(task.round))
        return Outgoing(slot, node, message)

    def _keep(self, current: _Round, found: Exchange) -> None:
        for slot, (facts, model) in found.contents.items():
            current.facts[slot] = facts
            if model is not None:
                whole = {**current.staying, **model}
                current.models[slot] = {name: whole[name] for name in current.sent[slot]}
                current.bytes_received += sum(len(array.data) for array in model.values())
        current.reasons |= found.reasons
        current.ignored += found.ignored
        current.seconds |= found.seconds

    def _replace(self, current: _Round) -> bool:
        """Ask other clients in the place of those that are missing; return whether there are any."""
        task = current.task
        tried = {*task.clients, *current.replaced}
        federation = task.federation
        left = [client for client in range(len(federation.partition)) if client not in tried]
        rng = federation.generator("replacement of missing clients", task.round, len(current.replaced))
        drawn = iter(rng.permutation(left).tolist())
        clients, slots = list(task.clients), []
        for slot in list(current.reasons):
            other = next(drawn, None)
            if other is None or task.dispatch is None:
                break
            current.replaced[clients[slot]] = current.reasons.pop(slot)
            clients[slot] = other
            slots.append(slot)
        if not slots:
            return False
        current.task = task.with_clients(tuple(clients))
        self._ask(current, slots)
        return True

    def _collected(self, current: _Round) -> Answers:
        task, slots = current.task, range(len(current.task.clients))
        models = [current.models.get(slot, current.sent[slot]) for slot in slots]
        facts, report = current.facts, self._report(current)
        current.file.release_pages()
        self._last_file = current.file
        return Answers(
            task=task,
            cohort=HandleCohort(models, _forms(task.cohort)),
            losses=[facts[slot].loss if slot in facts else math.nan for slot in slots],
            missing=dict(current.reasons),
            finite=[facts[slot].finite if slot in facts else True for slot in slots],
            is_private=True,
            report=report,
        )

    def _report(self, current: _Round) -> dict[str, Any]:
        """Return what is recorded of the round: which node trained what, and what was refused."""
        binding = Binding.of(len(current.task.federation.partition), self._deployment.clients)
        trained = [
            {
                "slot": slot,
                "client": current.task.clients[slot],
                "node": binding.names[current.task.clients[slot]],
                "seconds": current.seconds[slot],
                "sha256": content_hash(current.models[slot]) if slot in current.models else None,
            }
            for slot in sorted(current.facts)
        ]
        found: dict[str, Any] = {
            "bytes_sent": current.bytes_sent,
            "bytes_received": current.bytes_received,
            "trained": trained,
        }
        if current.replaced:
            found["replaced"] = {str(client): reason for client, reason in current.replaced.items()}
        if current.ignored:
            found["ignored"] = current.ignored
        return found


def _encoded(cohort: Cohort, staying: Mapping[str, Any]) -> list[Arrays]:
    """Return the arrays of every dispatched model; those that all models share are made once."""
    if isinstance(cohort, HandleCohort):
        return list(cohort.models)
    shared = dict(staying)
    for name, tensor in cohort.tensors.items():
        if name not in shared and (tensor.stride(0) == 0 or cohort.slots == 1):
            shared[name] = to_array(tensor[0])
    return [
        {name: shared[name] if name in shared else to_array(tensor) for name, tensor in cohort.slot(slot).items()}
        for slot in range(cohort.slots)
    ]


def _forms(cohort: Cohort) -> Mapping[str, Form]:
    return cohort.forms if isinstance(cohort, HandleCohort) else {n: Form.of(t[0]) for n, t in cohort.tensors.items()}


def _stage_of(recipe: Recipe, task: LocalTraining) -> int:
    """Return the position of a stage with the method that trains; two stages of equal methods train alike."""
    return next(
        position
        for position, stage in enumerate(recipe.stages)
        if isinstance(stage, TrainingStage) and stage.method == task.algorithm
    )
