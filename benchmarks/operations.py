"""Count what a GPU would be asked to do: launches of kernels, bytes that they move, synchronisations. No GPU is needed.

    python benchmarks/operations.py [--models lenet resnet20] [--clients 10] [--batch 50]

Everything runs on torch's `meta` device, whose tensors have a shape and no values: nothing is computed and nothing is
timed. What is counted is torch's operations below `vmap` and autograd, each as one launch (of cuDNN's it may be a few
more), with the bytes of the tensors that it reads and writes.

A step is one local step of all clients: what a second step of every client adds to a round's local training. The
synchronisations are those of a whole round of FedMR with one step: of its selection, training, recombination and
evaluation on 400 examples. Checkpoints are not in it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.catalogue import ARCHITECTURES, TASKS
from fedmr_merge.federated.data.images import ImageData
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.data.tensors import Examples
from fedmr_merge.federated.data.tokenizers import Bytes
from fedmr_merge.federated.data.tokens import TokenData
from fedmr_merge.federated.federation import Federation, Training, open_federation
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.training.engines.loop import Loop
from fedmr_merge.federated.training.engines.vmap import Vmap
from fedmr_merge.federated.training.local_training import LocalTraining

_NO_LAUNCH = [
    "_reshape_alias",
    "_unsafe_view",
    "alias",
    "as_strided",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "expand",
    "is_pinned",
    "lift_fresh",
    "movedim",
    "new_empty",
    "new_empty_strided",
    "permute",
    "resolve_conj",
    "resolve_neg",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unfold",
    "unsqueeze",
    "view",
]
"""Operations that only look at memory in another way, or reserve some."""

_LENGTH = 128  # of a text, in bytes

_COPIES = ("_to_copy", "copy_", "to")
"""Operations that may go from one device to another; the last one is seen as such in inference mode only."""


@dataclass
class Counts:
    """What was counted, by the name of the operation."""

    launches: Counter[str] = field(default_factory=Counter)
    moved_bytes: Counter[str] = field(default_factory=Counter)
    synchronisations: Counter[str] = field(default_factory=Counter)
    mixed: set[str] = field(default_factory=set)  #: operations whose tensors lay on different devices

    def minus(self, other: Counts) -> Counts:
        """Return what this counted more than another."""
        launches, moved, waits = (
            Counter({key: count for key in mine if (count := mine[key] - theirs[key])})
            for mine, theirs in (
                (self.launches, other.launches),
                (self.moved_bytes, other.moved_bytes),
                (self.synchronisations, other.synchronisations),
            )
        )
        return Counts(launches, moved, waits, self.mixed - other.mixed)


@contextmanager
def counting() -> Iterator[Counts]:
    """Count the operations on the `meta` device within a block.

    Where the host asks for a value it gets ones, and that is a synchronisation; so is a copy from the host, of numbers
    in a list too, since the host waits for it unless the memory is page-locked.
    """
    counts = Counts()
    with _Operations(counts), _HiddenCopies(counts):
        yield counts


class _HiddenCopies(TorchFunctionMode):
    """Counts the copies that torch makes of lists of numbers, which are not operations of their own."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name == "tensor" and isinstance(result, Tensor) and result.device.type == "meta":
            self._counts.synchronisations[name] += 1
        if name in ("__getitem__", "__setitem__") and args[0].device.type == "meta":
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            self._counts.synchronisations[name] += any(isinstance(index, list) for index in indices)
        return result


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name.split("::")[1]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = self._run(name, function, args, kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in (*inputs, *outputs)}
        if name == "_local_scalar_dense" and "meta" in devices:
            self.counts.synchronisations[name] += 1
        elif len(devices) > 1:
            if name in _COPIES:
                self.counts.synchronisations[name] += 1
            elif len({tensor.device.type for tensor in (*inputs, *outputs) if tensor.dim()}) > 1:
                self.counts.mixed.add(name)
                self.counts.synchronisations[name] += 1
        if "meta" in devices and name not in _NO_LAUNCH:
            self.counts.launches[name] += 1
            self.counts.moved_bytes[name] += sum(tensor.nbytes for tensor in (*inputs, *outputs))
        return result

    def _run(self, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, or stand in for one that needs values or that the `meta` device lacks."""
        first = args[0] if args and isinstance(args[0], Tensor) else None
        on_meta = first is not None and first.device.type == "meta"
        if name.startswith("_fused_"):  # steps of the optimisers
            return None
        if name == "_local_scalar_dense" and on_meta:
            return torch.ones((), dtype=first.dtype).item()
        if name in ("_to_copy", "to") and on_meta and str(kwargs.get("device")) == "cpu":
            return torch.ones(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        if name == "copy_" and not on_meta and first is not None and args[1].device.type == "meta":
            return first.fill_(1)
        if name == "bincount" and on_meta:
            return torch.ones(kwargs.get("minlength") or args[2], dtype=torch.int64, device="meta")
        return function(*args, **kwargs)


def make_federation(model: str, *, clients: int, batch: int, steps: int = 1, **training: Any) -> Federation:
    """Return a federation on the `meta` device, whose clients have so many batches each.

    Its examples are images of CIFAR-10's shape, or texts of 128 bytes.
    """
    examples = clients * batch * steps
    options = {"clients_per_round": clients, "local_epochs": 1, "batch_size": batch, "engine": "vmap"} | training
    architecture = ARCHITECTURES.find(model)()
    data, task = (
        _texts(model, examples) if architecture.takes == "tokens" else (_images(examples), "image-classification")
    )
    partition = Partition.of(np.arange(examples).reshape(clients, -1))
    return open_federation(
        architecture, data, partition, Training(**options), seed=0, device="meta", task=TASKS.find(task)()
    )


def _images(examples: int) -> ImageData:
    return ImageData(
        train_images=torch.zeros(examples, 3, 32, 32, dtype=torch.uint8, device="meta"),
        train_labels=torch.zeros(examples, dtype=torch.int64, device="meta"),
        test_images=torch.zeros(400, 3, 32, 32, dtype=torch.uint8, device="meta"),
        test_labels=torch.zeros(400, dtype=torch.int64, device="meta"),
        class_names=tuple(map(str, range(10))),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )


def _texts(model: str, examples: int) -> tuple[TokenData, str]:
    tokenizer, predicts_tokens = Bytes(), model == "gpt"

    def part(number: int) -> Examples:
        ids = torch.zeros(number, _LENGTH, dtype=torch.int64, device="meta")
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}
        return Examples(inputs, ids if predicts_tokens else ids[:, 0])

    names = () if predicts_tokens else ("a", "b")
    data = TokenData(train=part(examples), test=part(400), class_names=names, tokenizer=tokenizer, length=_LENGTH)
    return data, "causal-lm" if predicts_tokens else "text-classification"


def count_training(federation: Federation, algorithm: Algorithm) -> Counts:
    """Count the local training of a round."""
    state = algorithm.start(federation, initial_state(federation))
    selected = tuple(range(federation.slots))
    task = LocalTraining(federation, algorithm, *algorithm.dispatch(federation, state, selected), selected, 1)
    engine = Vmap() if federation.engine == "vmap" else Loop()
    with counting() as counts:
        engine.train(task)
    return counts


def count_step(model: str, algorithm: Algorithm, *, clients: int, batch: int, **training: Any) -> Counts:
    """Count one local step of every client."""
    one, two = (
        count_training(make_federation(model, clients=clients, batch=batch, steps=steps, **training), algorithm)
        for steps in (1, 2)
    )
    return two.minus(one)


def count_round(federation: Federation, algorithm: Algorithm) -> Counts:
    """Count the second round: what the first one makes once, and keeps, is not in it."""
    state = algorithm.start(federation, initial_state(federation))
    with counting():
        (first,) = run_rounds(federation, algorithm, state, first_round=1, rounds=1)
    with counting() as counts:
        (_,) = run_rounds(federation, algorithm, first.state, first_round=2, rounds=1)
    return counts


def rows(args: argparse.Namespace) -> Iterator[str]:
    """Yield the table, a line for every model."""
    size = {"clients": args.clients, "batch": args.batch}
    yield "| model | launches a step: `vmap` | `loop` | GB a step: `vmap` | `loop` | synchronisations a round |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for model in args.models:
        steps = [count_step(model, FedAvg(), **size, engine=engine) for engine in ("vmap", "loop")]
        launches = " | ".join(f"{step.launches.total():,}" for step in steps)
        moved = " | ".join(f"{step.moved_bytes.total() / 1e9:.2f}" for step in steps)
        waits = count_round(make_federation(model, **size), FedMR()).synchronisations.total()
        yield f"| `{model}` | {launches} | {moved} | {waits} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet", "resnet20"])
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--batch", type=int, default=50)
    args = parser.parse_args()
    print(f"{date.today()}, torch {torch.__version__}, {args.clients} clients, batches of {args.batch}: counted")
    for line in rows(args):
        print(line, flush=True)


if __name__ == "__main__":
    main()
