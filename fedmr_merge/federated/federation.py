"""Everything that stays the same in a run: data, partition, architecture, how clients train, and the seed."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Cohort, Mean, Weights
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.data.partition import Indices, Partition, require_examples
from fedmr_merge.federated.data.validation import divide
from fedmr_merge.federated.model_check import require_parts, require_trainable
from fedmr_merge.federated.models.base import Architecture, has_parts
from fedmr_merge.federated.tasks.base import Task
from fedmr_merge.federated.tasks.image_classification import ImageClassification
from fedmr_merge.federated.training.batches import (
    batch_sizes,
    clients_with_a_lone_example,
    step_sizes,
    trains_on_one_example,
)
from fedmr_merge.federated.training.forward import Forward
from fedmr_merge.federated.training.options import Training, require_options_that_fit
from fedmr_merge.federated.training.privacy import require_accountant, require_no_statistics, require_nothing_measured
from fedmr_merge.federated.training.secret import Secret
from fedmr_merge.seeds import generator

_NAMED = 5  # clients, in a message
_CORES = torch.get_num_threads()  # before anything sets another number: those of the machine, or OMP_NUM_THREADS


@dataclass(frozen=True, eq=False)
class Federation:
    """The clients, their data and the model they train. Made by `open_federation`."""

    architecture: Architecture
    data: Data  #: on `device`
    partition: Partition  #: the examples that every client trains on
    training: Training
    seed: int
    device: torch.device
    module: nn.Module  #: on `device`, with the initial weights; a template that no training changes
    cores: int  #: of a CPU, to train as many clients side by side
    task: Task  #: what the model is to predict, its loss and its metrics
    devices: tuple[torch.device, ...]  #: those that there are to train on, `device` being the first
    held_out: tuple[Indices, ...] | None = None
    """For every client its examples that are held out of training, with `training.validation_share`."""

    @property
    def dealt(self) -> Partition:
        """The partition as it was dealt, with the examples that are held out of training."""
        if self.held_out is None:
            return self.partition
        return Partition.of(
            [np.concatenate(parts) for parts in zip(self.partition.clients, self.held_out, strict=True)]
        )

    @property
    def deciding_part(self) -> Literal["validation", "test"]:
        """The examples on which the metric is measured that decides when a stage ends."""
        return "test" if self.held_out is None else "validation"

    @property
    def slots(self) -> int:
        """K, the number of clients selected in a round and of the models they train."""
        return self.training.clients_per_round

    @property
    def engine(self) -> Literal["loop", "vmap"]:
        """The engine that trains: what `training.engine` comes to on this device."""
        if self.training.engine == "auto":
            return "vmap" if self.device.type == "cuda" else "loop"
        return self.training.engine

    @property
    def clients_at_once(self) -> int:
        """How many clients engine `vmap` trains at once, where memory has room for them."""
        return self.training.cohort_chunk or -(-self.slots // len(self.training_devices))

    @property
    def training_devices(self) -> tuple[torch.device, ...]:
        """The devices that clients are dealt to. With `compile` it is one: several have not been tried with it."""
        return self.devices[:1] if self.training.compile or self.engine == "loop" else self.devices

    def on_devices(self) -> tuple[Federation, ...]:
        """Return the federation as each of several devices has it, with data and a module of its own; or itself."""
        if len(self.training_devices) == 1:
            return (self,)
        return tuple(
            replace(self, data=self.data.to(each), module=deepcopy(self.module).to(each), device=each, devices=(each,))
            for each in self.devices
        )

    @cached_property
    def layers(self) -> dict[str, str]:
        """The layer of every tensor of the model."""
        return self.architecture.layers(self.module)

    @cached_property
    def trainable(self) -> tuple[str, ...]:
        """The names of the tensors that have gradients; the others are buffers or frozen."""
        return tuple(name for name, parameter in self.module.named_parameters() if parameter.requires_grad)

    @cached_property
    def client_indices(self) -> tuple[Tensor, ...]:
        """For every client the indices of its training examples, on the device."""
        return tuple(torch.tensor(indices, device=self.device) for indices in self.partition.clients)

    def epoch_step_sizes(self, client: int) -> tuple[int, ...]:
        """Return how many examples each step of a client's local epoch takes, in one batch or in several."""
        last_batch = self.training.last_batch if self.lone_clients else "keep"
        sizes = batch_sizes(self.partition.sizes[client], self.training.batch_size, last_batch)
        return step_sizes(sizes, self.training.gradient_accumulation_steps)

    def accumulated_sizes(self, examples: int) -> tuple[int, ...]:
        """Return the batches in which a step goes through so many examples, and whose gradients it accumulates."""
        if self.training.gradient_accumulation_steps == 1:
            return (examples,)
        return batch_sizes(examples, self.training.batch_size, "merge" if self.lone_clients else "keep")

    @cached_property
    def lone_clients(self) -> tuple[int, ...]:
        """The clients whose epochs would end with a batch of one example that the model cannot train on."""
        found = clients_with_a_lone_example(self.partition.sizes, self.training.batch_size)
        if found and trains_on_one_example(self.module, self.data.inputs("train", slice(0, 1))):
            return ()
        return found

    @cached_property
    def training_forward(self) -> Forward:
        """The model in training mode."""
        return self.new_training_forward()

    def new_training_forward(self) -> Forward:
        """Return one whose weights no other shares: a forward runs in one thread at a time."""
        loss = self.task.loss(self.data, self.training)
        return Forward(deepcopy(self.module).train(), frozen=self._new_evaluation_forward(), loss=loss)

    @cached_property
    def evaluation_forward(self) -> Forward:
        """The model in evaluation mode."""
        return self._new_evaluation_forward()

    def _new_evaluation_forward(self) -> Forward:
        # It changes no tensor, so that those of the module itself will do.
        shared = {id(tensor): tensor for tensor in (*self.module.parameters(), *self.module.buffers())}
        return Forward(deepcopy(self.module, shared).eval())

    def mean(self, cohort: Cohort, weights: Sequence[float] | None = None, *, is_sent: bool = False) -> Mean:
        """Return the global model that a cohort averages into; `is_sent`: clients will train it."""
        return self.architecture.mean(cohort, weights, is_sent=is_sent)

    def require_head(self, method: str, reason: str, *, classes: bool = False) -> None:
        """Raise TrainingError unless the model is a head on top of features, which a method needs for this reason.

        With `classes`, the head's outputs must be logits of classes, one for each.
        """
        if classes and not self.data.num_classes:
            raise TrainingError(
                f"{method} {reason}, and the targets of these data are not classes", hint="choose another method"
            )
        if not has_parts(self.module):
            raise TrainingError(
                f"{method} {reason}, and model {self.architecture.name} does not say what its features and head are",
                hint="choose another method, or a model with the methods features(examples) and head(features)",
            )
        require_parts(self, method)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What `config.json` of a model says of the task and the data."""
        return self.task.config(self.data)

    @cached_property
    def secret(self) -> Secret:
        """What a private run draws its noise from, and who takes part. Raises TrainingError for a bad key file."""
        return Secret.of_this_process() if self.training.privacy is None else self.training.privacy.secret()

    def generator(self, purpose: str, *place: int | str) -> np.random.Generator:
        """Return the random generator of this run for a purpose and place (round, client, …)."""
        return generator(self.seed, purpose, *place)

    def sampling_generator(self, weights: Weights, round: int) -> np.random.Generator:
        """Return the generator that selects the clients of a round, which begins with a global model.

        The epsilon of a private run assumes that nobody knows who took part: there it does not depend on the seed, and
        runs with one key file select other clients as soon as their models differ.
        """
        if self.training.privacy is not None:
            return self.secret.of_content(weights).generator("client selection", round)
        return self.generator("client selection", round)


def open_federation(
    architecture: Architecture,
    data: Data,
    partition: Partition,
    training: Training,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    cores: int | None = None,
    task: Task = ImageClassification(),  # noqa: B008 - a frozen value
    devices: Sequence[torch.device] = (),
) -> Federation:
    """Put the parts of a federation together on a device, with a freshly initialised module.

    A CPU trains with all its cores, or with so many. `devices` are all that clients may be dealt to, where there are
    several; `device` is the first of them.

    Raises DataError when the partition does not fit the data, TrainingError when there are fewer clients than a round
    selects or an option cannot apply to this device, engine or model.
    """
    require_options_that_fit(training)
    task.check(data, training)
    require_examples(partition, data)
    if training.clients_per_round > len(partition):
        raise TrainingError(
            f"{training.clients_per_round} clients per round cannot be selected from {len(partition)}",
            hint="lower training.clients_per_round or raise the partition's number of clients",
        )
    partition, held_out = hold_out(partition, training, seed)
    device = torch.device(device)
    architecture = _for_task(architecture, data, task)
    module = _initialise(architecture, data, task, seed)
    federation = Federation(
        architecture=architecture,
        data=data.to(device),
        partition=partition,
        training=training,
        seed=seed,
        device=device,
        module=module.to(device),
        cores=cores or _CORES,
        task=task,
        devices=tuple(devices) or (device,),
        held_out=held_out,
    )
    _refuse_what_cannot_apply(federation)
    return federation


def hold_out(partition: Partition, training: Training, seed: int) -> tuple[Partition, tuple[Indices, ...] | None]:
    """Return the examples that every client trains on, and those that `training.validation_share` holds out.

    Raises DataError when no client has an example to hold out.
    """
    if training.validation_share is None:
        return partition, None
    return divide(partition, training.validation_share, partial(generator, seed, "validation part"))


_HINT = "build the module in an Architecture of the same file"


def _for_task(architecture: Architecture, data: Data, task: Task) -> Architecture:
    """Return the architecture for the task. Raises TrainingError when it is something else, or takes other data."""
    if not isinstance(architecture, Architecture):
        kind = type(architecture).__name__
        raise TrainingError(f"the model to train must be an Architecture, {kind} is not one", hint=_HINT)
    architecture.require_kind(data.kind)
    return architecture.for_task(task.name)


def _initialise(architecture: Architecture, data: Data, task: Task, seed: int) -> nn.Module:
    """Build the module, with contiguous parameters. Raises TrainingError when it is of another kind."""
    module = architecture.initialise(data.example_shape, task.outputs(data), seed)
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise TrainingError(f"model {architecture.name} builds a {kind}, which is not a torch module", hint=_HINT)
    for parameter in module.parameters():
        # The kernels of the optimisers read a parameter and its gradient in the order of memory.
        parameter.data = parameter.data.contiguous()
    return module


def _refuse_what_cannot_apply(federation: Federation) -> None:
    training = federation.training
    if training.precision == "tf32" and federation.device.type != "cuda":
        raise TrainingError(
            "training.precision tf32 needs a GPU, and this is a CPU", hint="set training.precision to fp32"
        )
    if training.cohort_chunk is not None and federation.engine == "loop":
        raise TrainingError(
            "training.cohort_chunk is how many clients engine vmap trains at once; engine loop trains one",
            hint="set training.engine to vmap, or leave cohort_chunk out",
        )
    require_trainable(federation)
    _refuse_lone_examples(federation)
    if training.privacy is not None:
        require_accountant()
        _ = federation.secret  # a key file that is of no use is reported before the first round
        require_no_statistics(dict(federation.module.named_buffers()))
        require_nothing_measured(training.privacy, federation.data)


def _refuse_lone_examples(federation: Federation) -> None:
    """Raise TrainingError when the run would meet a batch of one example that the model cannot train on."""
    lone, training = federation.lone_clients, federation.training
    if not lone:
        return
    reason = f"the batch normalisation of model {federation.architecture.name} cannot train on a batch of one example"
    if training.batch_size == 1:
        raise TrainingError(f"training.batch_size is 1, but {reason}", hint="set training.batch_size to 2 or more")
    if max(federation.partition.sizes) == 1:
        raise TrainingError(f"every client has a single example, but {reason}", hint="choose another model")
    if training.last_batch == "keep":
        raise TrainingError(
            f"{reason}, with which the epochs of {_some(lone)} end",
            hint="set training.last_batch to merge or drop, or change training.batch_size",
        )


def describe_last_batches(federation: Federation) -> str | None:
    """Return one line that says what becomes of last batches that cannot be trained on; None where there are none."""
    lone, training = federation.lone_clients, federation.training
    if not lone:
        return None
    sizes = federation.partition.sizes
    single = tuple(client for client in lone if sizes[client] == 1)
    done = "added to the batch before" if training.last_batch == "merge" else "left out"
    line = (
        f"last batches: the epochs of {_some(lone)} end with one example, which the model's batch normalisation cannot "
        f"train on; it is {done} (training.last_batch: {training.last_batch})"
    )
    return f"{line}; {_some(single)} with no other example: no step is taken there" if single else line


def _some(clients: Sequence[int]) -> str:
    """Name some clients, e.g. `3 clients (5, 8, 13)`."""
    named = ", ".join(map(str, clients[:_NAMED])) + (", …" if len(clients) > _NAMED else "")
    return f"{len(clients)} client{'s' if len(clients) > 1 else ''} ({named})"
