"""What a client's machine does with an instruction: rebuild its part of the round, train, and reply."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Context
from fedmr_merge.federated.training.divergence import finite_models
from fedmr_merge.federated.training.engines.loop import Loop
from fedmr_merge.federated.training.local_training import LocalTraining, SlotOfRound
from fedmr_merge.federated.training.precision import float32_products
from fedmr_merge.federated.training.privacy import clipped, privatise
from fedmr_merge.flower.arrays import RefusedError
from fedmr_merge.flower.base_weights import complete
from fedmr_merge.flower.node_data import client_federation, describe
from fedmr_merge.flower.wire import (
    Description,
    Instruction,
    ReplyFacts,
    Side,
    pack_facts,
    pack_reply,
    unpack_instruction,
    unpack_question,
)
from fedmr_merge.recipe.identity import identity
from fedmr_merge.recipe.schema import Recipe
from fedmr_merge.recipe.stages import TrainingStage

if TYPE_CHECKING:
    from flwr.app import RecordDict


def answer(content: RecordDict, recipe: Recipe, node: Mapping[str, Any] | None = None) -> RecordDict:
    """Train as an instruction says, with the data of this machine, and return the content of the reply.

    Args:
        content: The content of the instruction.
        recipe: The recipe, as this machine got it.
        node: The configuration of this machine's SuperNode, which says where its data are.

    Raises TrainingError when the instruction is refused, or the recipe cannot be followed here.
    """
    try:
        instruction, model, context = unpack_instruction(content)
        Side.here(identity(recipe)).refuse_other(instruction.side, "the server")
    except RefusedError as error:
        raise TrainingError(f"the instruction is refused: {error}") from error
    torch.set_num_threads(max(1, instruction.threads))
    federation = client_federation(recipe, node or {}, instruction.client)
    sent = set(model)
    try:
        model = complete(model, federation, instruction.base)
    except RefusedError as error:
        raise TrainingError(f"the instruction is refused: {error}") from error
    task = local_training(recipe, federation, instruction, model, context)
    with float32_products():
        cohort, losses = Loop().train(task)
    loss, finite = losses[0], finite_models(cohort)[0]
    facts = ReplyFacts(
        version=instruction.version,
        recipe=instruction.recipe,
        round=instruction.round,
        client=instruction.client,
        examples=task.examples[0],
        steps=len(task.step_sizes(0)),
        loss=float(loss),
        finite=finite,
    )
    trained = {name: tensor for name, tensor in _sent(task, cohort).items() if name in sent} if finite else {}
    return pack_reply(facts, trained)


def answer_question(content: RecordDict, recipe: Recipe, node: Mapping[str, Any]) -> RecordDict:
    """Describe the data of this machine: how many examples of which class, and in what form.

    Raises TrainingError when the question is refused, DataError when the data cannot be read.
    """
    try:
        question = unpack_question(content)
        Side.here(identity(recipe)).refuse_other(question.side, "the server")
    except RefusedError as error:
        raise TrainingError(f"the question is refused: {error}") from error
    data = json.dumps(describe(recipe, node))
    return pack_facts(Description(question.version, question.recipe, question.client, data))


def local_training(
    recipe: Recipe, federation: Federation, instruction: Instruction, model: Mapping[str, Tensor], context: Context
) -> LocalTraining:
    """Return the local training of the one client that an instruction is for.

    Raises TrainingError when the instruction names a stage or a client that the recipe does not have.
    """
    stages = recipe.stages
    stage = stages[instruction.stage] if instruction.stage < len(stages) else None
    if not isinstance(stage, TrainingStage):
        raise TrainingError(f"stages[{instruction.stage}] of the recipe trains nothing")
    if instruction.client >= len(federation.partition) or instruction.slot >= instruction.slots:
        raise TrainingError(f"the recipe has no client {instruction.client} in slot {instruction.slot}")
    device = federation.device
    own = {
        family: {name: tensor.unsqueeze(0).to(device) for name, tensor in tensors.items()}
        for family, tensors in context.own.items()
    }
    shared = {
        family: {name: tensor.to(device) for name, tensor in tensors.items()}
        for family, tensors in context.shared.items()
    }
    return LocalTraining(
        federation=federation,
        algorithm=stage.method,
        cohort=Cohort.stack([{name: tensor.to(device) for name, tensor in model.items()}]),
        context=Context(shared, own),
        clients=(instruction.client,),
        round=instruction.round,
        lr=instruction.lr,
        place=SlotOfRound(instruction.slot, instruction.slots),
    )


def _sent(task: LocalTraining, trained: Cohort) -> Mapping[str, Tensor]:
    """Return the model that leaves this machine: in a private run clipped and, of the local kind, with noise."""
    federation = task.federation
    privacy = federation.training.privacy
    if privacy is not None and privacy.kind == "central":
        trained = clipped(privacy, task.cohort, trained, federation.trainable)
    elif privacy is not None:
        # Two clients with the same key file must not have the same noise, nor two slots of one client.
        secret = federation.secret.derived("client", task.clients[0], task.place.slot if task.place else 0)
        trained = privatise(privacy, task.cohort, trained, federation.trainable, secret, task.round)
    return trained.slot(0)
