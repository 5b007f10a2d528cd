"""Data that stay on the machines of the clients: what each side of a run has in their place.

A client trains on all training examples of its own machine. The server evaluates on the test examples of its own
machine, and knows of each client how many training examples of which class it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmr_merge.errors import DataError, TrainingError, shown
from fedmr_merge.federated.data.examples import Data, Inputs, Part
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.data.partitions.nodes import Nodes
from fedmr_merge.federated.federation import Federation
from fedmr_merge.recipe.deployment import Deployment
from fedmr_merge.recipe.prepare import prepare
from fedmr_merge.recipe.schema import Recipe
from fedmr_merge.recipe.stages import Recalibrate, TrainingStage

_PREFIX, _NAME = "$NODE/", "$NAME"
_CONFIGURATION = "this node's --node-config"
_OF_OTHERS = 2  # stand-ins for the examples of every other client: a client of one example is a case of its own


def stays_at_nodes(recipe: Recipe) -> bool:
    """Return whether the clients' data are on their own machines."""
    return isinstance(recipe.partition, Nodes)


def with_paths(recipe: Recipe, values: Mapping[str, Any], whose: str) -> Recipe:
    """Return the recipe with the paths of one machine: `$NODE/data` is what this machine calls `data`.

    `values` are the node's configuration, or `deployment.server`; `whose` is what a message calls them.

    Raises DataError for a key that the machine does not have.
    """
    changes = {}
    for name, value in recipe.data.options().items():
        if isinstance(value, str) and value.startswith(_PREFIX):
            key, _, rest = value.removeprefix(_PREFIX).partition("/")
            if key not in values:
                raise DataError(f"data.{name} is {value!r}, and {whose} has no {key!r}", hint=f"set {key!r} there")
            changes[name] = str(Path(str(values[key])) / rest)
    return replace(recipe, data=recipe.data.with_options(changes)) if changes else recipe


def rehearsed_values(recipe: Recipe, name: str) -> dict[str, str]:
    """Return the configuration of a node in a rehearsal, in which the data of all clients are on this machine."""
    values = (recipe.deployment or Deployment()).rehearsal
    return {key: str(Path(value.replace(_NAME, name)).absolute()) for key, value in values.items()}


def rehearsed_federation(recipe: Recipe, names: Mapping[int, str]) -> Federation:
    """Return the federation as the server of a rehearsal sees it; `names` are those of the nodes, by client.

    Raises DataError when a client's data cannot be read, or do not fit the server's.
    """
    deployment = recipe.deployment or Deployment()
    own = with_paths(recipe, deployment.server, "deployment.server").data.load()
    outlines = []
    for client, name in sorted(names.items()):
        claim = describe(recipe, rehearsed_values(recipe, name), "deployment.rehearsal")
        outlines.append(outline_of(claim, own, client, deployment.most_examples))
    return server_federation(recipe, outlines, own)


class _Wrapped(Data):
    """Data that are those of another object, but for what a subclass defines."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    kind = property(lambda self: self.data.kind)
    example_shape = property(lambda self: self.data.example_shape)
    device = property(lambda self: self.data.device)
    target_unit = property(lambda self: self.data.target_unit)

    def targets(self, part: Part) -> Tensor:
        """Return the targets of a part."""
        return self.data.targets(part)

    def inputs(self, part: Part, where: Tensor | slice) -> Inputs:
        """Return examples of a part."""
        return self.data.inputs(part, where)

    def draw_changes(self, indices: Tensor, rng: np.random.Generator) -> Tensor:
        """Draw how training examples are changed."""
        return self.data.draw_changes(indices, rng)

    def training_inputs(self, rows: Tensor) -> tuple[Inputs, Tensor]:
        """Return training examples as they are trained on."""
        return self.data.training_inputs(rows)

    def write_sidecars(self, folder: Path) -> None:
        """Write what else a user of a model needs."""
        self.data.write_sidecars(folder)

    def preprocess(self) -> dict[str, Any]:
        """Return what a user of the model must do to an example."""
        return self.data.preprocess()


class ClientData(_Wrapped):
    """The data of one client, with room for the numbers of the other clients' examples, which nobody reads."""

    def __init__(self, data: Data, clients: int) -> None:
        super().__init__(data)
        self.clients = clients

    def to(self, device: torch.device) -> Data:
        """Return the data on a device."""
        return ClientData(self.data.to(device), self.clients)

    def examples(self, part: Part) -> int:
        """Return the number of examples of a part, stand-ins included."""
        found = self.data.examples(part)
        return found + _OF_OTHERS * (self.clients - 1) if part == "train" else found

    def partition(self, client: int) -> Partition:
        """Return the partition in which this client has all training examples of the machine."""
        own = self.data.examples("train")
        starts = iter(range(own, own + _OF_OTHERS * self.clients, _OF_OTHERS))
        others = [range(start, start + _OF_OTHERS) for start in starts][: self.clients - 1]
        return Partition.of([list(part) for part in [*others[:client], range(own), *others[client:]]])


@dataclass(frozen=True)
class Outline:
    """What the server knows of a client's data."""

    counts: tuple[int, ...]  #: training examples of every class; their number alone where targets are not classes

    @property
    def examples(self) -> int:
        """The number of training examples."""
        return sum(self.counts)


class ServerData(_Wrapped):
    """The server's own test examples, and outlines of the clients' training examples."""

    def __init__(self, data: Data, outlines: Sequence[Outline]) -> None:
        super().__init__(data)
        self.outlines = tuple(outlines)
        counts = [list(outline.counts) for outline in outlines]
        labels = [np.repeat(np.arange(len(row)), row) for row in counts]
        self._labels = torch.from_numpy(np.concatenate(labels)).to(data.device)

    def to(self, device: torch.device) -> Data:
        """Return the data on a device."""
        return ServerData(self.data.to(device), self.outlines)

    def targets(self, part: Part) -> Tensor:
        """Return the targets of a part: of training examples the classes, in the order of clients and classes."""
        if part == "test":
            return self.data.targets(part)
        return self._labels if self.data.num_classes else torch.zeros(len(self._labels))

    def inputs(self, part: Part, where: Tensor | slice) -> Inputs:
        """Return examples of a part; in the place of training examples the first test example, which has their form."""
        if part == "test":
            return self.data.inputs(part, where)
        count = len(range(*where.indices(len(self._labels)))) if isinstance(where, slice) else where.numel()
        return self.data.inputs("test", torch.zeros(count, dtype=torch.int64, device=self.data.device))

    def partition(self) -> Partition:
        """Return the partition in which every client has the examples of its outline."""
        ends = np.cumsum([outline.examples for outline in self.outlines])
        return Partition.of(np.split(np.arange(ends[-1]), ends[:-1]))


def client_federation(recipe: Recipe, node: Mapping[str, Any], client: int) -> Federation:
    """Return the federation as a client's machine sees it; `node` is the configuration of its SuperNode."""
    here = with_paths(recipe, node, _CONFIGURATION)
    if not isinstance(recipe.partition, Nodes):
        return prepare(here)
    if client >= recipe.partition.clients:
        raise TrainingError(f"the recipe has no client {client}")
    data = ClientData(here.data.load(), recipe.partition.clients)
    return prepare(here, data.partition(client), data)


def server_federation(
    recipe: Recipe, outlines: Sequence[Outline], own: Data, partition: Partition | None = None
) -> Federation:
    """Return the federation as the server sees it; `own` are the data of its own machine.

    Raises TrainingError when a stage needs what only the clients have.
    """
    if recipe.training.validation_share is not None:
        raise TrainingError(
            "training.validation_share is measured by the server, and the clients' data are on their machines",
            hint="leave training.validation_share out",
        )
    for position, stage in enumerate(recipe.stages):
        if isinstance(stage, Recalibrate):
            raise TrainingError(f"stages[{position}].recalibrate needs the clients' data, which are on their machines")
        if isinstance(stage, TrainingStage) and stage.method.selection == "by_loss":
            raise TrainingError(
                f"stages[{position}].{stage.name}: selection by_loss needs the clients' data, which stay where they are"
            )
    data = ServerData(own, outlines)
    dealt = data.partition()
    if partition is not None and partition.sizes != dealt.sizes:
        before, now = next(pair for pair in zip(partition.sizes, dealt.sizes, strict=False) if pair[0] != pair[1])
        raise DataError(
            f"a client has {now} training examples, and had {before} when the run began",
            hint="restore its data, or start anew with --fresh",
        )
    return prepare(recipe, dealt, data)


def describe(recipe: Recipe, node: Mapping[str, Any], whose: str = _CONFIGURATION) -> dict[str, Any]:
    """Return what a client's machine reports of its data: numbers of examples, and their form."""
    here = with_paths(recipe, node, whose)
    data = here.data.load()
    examples = data.examples("train")
    counts = [examples]
    if data.num_classes:
        counts = torch.bincount(data.targets("train").flatten(), minlength=data.num_classes).tolist()
    return {"counts": counts, "form": form_of(data)}


def form_of(data: Data) -> dict[str, Any]:
    """Return what the data of all machines must have in common."""
    return {
        "kind": data.kind,
        "shape": list(data.example_shape),
        "classes": list(data.class_names),
        "preprocess": data.preprocess(),
    }


def outline_of(claim: Any, own: Data, client: int, most_examples: int) -> Outline:
    """Return the outline that a client claims.

    Raises DataError when it does not fit the server's own data, or claims more than `most_examples` examples.
    """
    expected = form_of(own)
    found = claim.get("form") if isinstance(claim, dict) else None
    counts = claim.get("counts") if isinstance(claim, dict) else None
    if not isinstance(found, dict) or not isinstance(counts, list):
        raise DataError(f"client {client} describes its data in a form that is not known", client=client)
    for key, value in expected.items():
        if found.get(key) != value:
            hint = "the machines must read their data in the same way"
            if key == "preprocess":
                hint = "name a normalisation in the recipe: one that is measured differs from machine to machine"
            elif key == "classes":
                hint = "every machine needs all classes, in the same order: name them in its data"
            raise DataError(
                f"client {client} has other data: {key} is {shown(found.get(key), 80)}, here {shown(value, 80)}",
                hint=hint,
                client=client,
            )
    wanted = max(1, own.num_classes)
    if len(counts) != wanted or any(type(count) is not int or not 0 <= count < 1 << 31 for count in counts):
        raise DataError(f"client {client} claims {shown(counts, 80)} as its numbers of examples", client=client)
    examples = sum(counts)
    if not examples:
        raise DataError(f"client {client} has no training examples", client=client)
    if examples > most_examples:
        raise DataError(
            f"client {client} claims {examples:,} training examples, and deployment.most_examples is {most_examples:,}",
            hint="raise deployment.most_examples if the client has so many",
            client=client,
        )
    return Outline(tuple(counts))
