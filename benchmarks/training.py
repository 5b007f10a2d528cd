"""Time rounds of FedAvg against the usual per-client loop, and what a round of FedMR costs beside training.

    python benchmarks/training.py --data CIFAR10_PARQUET_FOLDER [--device cuda] [--models lenet cnn resnet20]

One round: 10 clients of 500 CIFAR-10 images, batches of 50, E local epochs, an average, and an evaluation on the test
images. `usual_loop.py` writes it as most research code does. Both sides train the same network on the same batches in
the same order at the same precision, evaluate in float32 on the same batches of test images, and on a GPU both are
deterministic; each is in a process of its own, so that neither has the other's memory; rounds alternate. Seconds are
CPU seconds of the process and its children on a CPU, wall-clock seconds on a GPU, and medians over the repeats, after a
round to warm up. Each side computes with as many threads as it takes by itself, as somebody would run it, unless
`--threads` gives both the same number.

`network` is the time of the usual loop's network alone: as many forward and backward passes with nothing around them.

`server` is the share of a round of FedMR, with this package, that recombining, averaging and the metrics of the models
take (the evaluation on test images is not in it); `checkpoint` that of writing K models and the global one.

On a GPU the clock is read when everything that was asked of it has been done.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import usual_loop
from PIL import Image

from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.catalogue import ARCHITECTURES
from fedmr_merge.federated.data.images import ImageData
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.evaluation import _BATCH_SIZE
from fedmr_merge.federated.federation import Federation, Training, open_federation
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.training.divergence import find_diverged, finite_models
from fedmr_merge.federated.training.engines.loop import Loop
from fedmr_merge.federated.training.engines.vmap import Vmap
from fedmr_merge.federated.training.local_training import LocalTraining, train_cohort
from fedmr_merge.recipe.prepare import make_deterministic, sensible_threads
from fedmr_merge.runs.checkpoints import Saved, save_state
from fedmr_merge.runs.names import Place

CLIENTS, EXAMPLES, BATCH, LR, MOMENTUM = 10, 500, 50, 0.01, 0.9

Images = tuple[np.ndarray, np.ndarray]


def read_images(folder: Path, split: str, count: int) -> Images:
    """Return the first images of a split, uint8 [count, 32, 32, 3], and their labels."""
    (path,) = folder.rglob(f"{split}-*.parquet")
    table = pq.read_table(path).slice(0, count).to_pylist()
    images = [np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in table]
    return np.stack(images), np.array([row["label"] for row in table])


def make_federation(name: str, train: Images, test: Images, args: argparse.Namespace) -> Federation:
    """Put the clients together for this package."""
    data = ImageData(
        train_images=torch.from_numpy(train[0]).permute(0, 3, 1, 2).contiguous(),
        train_labels=torch.from_numpy(train[1]),
        test_images=torch.from_numpy(test[0]).permute(0, 3, 1, 2).contiguous(),
        test_labels=torch.from_numpy(test[1]),
        class_names=tuple(map(str, range(10))),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    partition = Partition.of(np.arange(CLIENTS * EXAMPLES).reshape(CLIENTS, EXAMPLES))
    training = Training(
        clients_per_round=CLIENTS,
        local_epochs=args.epochs,
        batch_size=BATCH,
        lr=LR,
        momentum=MOMENTUM,
        engine=args.engine,
        precision=args.precision,
        compile=args.compile,
    )
    return open_federation(
        ARCHITECTURES.find(name)(), data, partition, training, seed=0, device=args.device, cores=args.threads
    )


def seconds(work: Callable[[], object], device: str) -> float:
    """Return how long something takes: CPU seconds on a CPU, wall-clock seconds on a GPU."""
    clock = time.perf_counter if device == "cuda" else _cpu_seconds
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def _cpu_seconds() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


def our_rounds(name: str, train: Images, test: Images, args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Run rounds of this package; yield the seconds of each, and in the end those of what a server does."""
    federation = make_federation(name, train, test, args)
    torch.set_num_threads(args.threads or sensible_threads(federation))
    results = _rounds(federation, FedAvg())
    for _ in range(args.repeats + 1):
        yield {"round": seconds(lambda: next(results), args.device)}
    yield server_side(federation, args)


def _rounds(federation: Federation, algorithm: Algorithm) -> Iterator[object]:
    state = algorithm.start(federation, initial_state(federation))
    return run_rounds(federation, algorithm, state, first_round=1, rounds=10**6)


def server_side(federation: Federation, args: argparse.Namespace) -> dict[str, float]:
    """Return the seconds that a round of FedMR takes beside training and evaluation, and those of a checkpoint."""
    algorithm = FedMR()
    state = algorithm.start(federation, initial_state(federation))
    selected = algorithm.select(federation, state, 1)
    task = LocalTraining(federation, algorithm, *algorithm.dispatch(federation, state, selected), selected, 1)
    trained = train_cohort(Vmap() if federation.engine == "vmap" else Loop(), task, own_models=True)

    def serve() -> None:
        find_diverged(
            finite_models(trained.cohort), trained.losses, trained.steps, trained.clients, 1, federation.training
        )
        algorithm.aggregate(federation, state, trained, 1)
        trained.cohort.similarity(federation.trainable)

    after = algorithm.aggregate(federation, state, trained, 1)

    def save() -> None:
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder), Saved(Place(1, 0, "fedmr"), after, 1, False), federation)

    times = max(args.repeats, 5)
    return {
        "server": statistics.median(seconds(serve, args.device) for _ in range(times + 1)),
        "checkpoint": statistics.median(seconds(save, args.device) for _ in range(times + 1)),
    }


def usual_rounds(name: str, train: Images, test: Images, args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Run rounds of the usual loop; yield the seconds of each."""
    torch.manual_seed(0)
    model = getattr(usual_loop, name)().to(args.device)
    images, held_out = usual_loop.PilImages(*train), usual_loop.PilImages(*test)
    options = {"batch_size": BATCH, "test_batch_size": _BATCH_SIZE, "lr": LR, "momentum": MOMENTUM}
    options |= {"device": torch.device(args.device), "precision": args.precision}
    for orders in orders_of_rounds(name, train, test, args):
        clients = [(images, order) for order in orders]
        round_of = partial(usual_loop.usual_round, model, clients, held_out, **options)
        yield {"round": seconds(round_of, args.device)}


def orders_of_rounds(
    name: str, train: Images, test: Images, args: argparse.Namespace
) -> Iterator[list[list[list[int]]]]:
    """Yield for every round, client and epoch the order in which this package goes through the examples."""
    on_cpu = {"device": "cpu", "engine": "auto", "precision": "fp32"}
    federation = make_federation(name, train, test, argparse.Namespace(**{**vars(args), **on_cpu}))
    algorithm = FedAvg()
    state = algorithm.start(federation, initial_state(federation))
    for number in count(1):
        selected = algorithm.select(federation, state, number)
        task = LocalTraining(federation, algorithm, *algorithm.dispatch(federation, state, selected), selected, number)
        yield [task.orders(slot).tolist() for slot in range(CLIENTS)]


def bare_rounds(name: str, train: Images, test: Images, args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Pass as many batches as a round has through the usual loop's network; yield the seconds of each."""
    model = getattr(usual_loop, name)().to(args.device)
    images = (torch.from_numpy(train[0][:BATCH]).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous().to(args.device)
    labels = torch.from_numpy(train[1][:BATCH]).to(args.device)
    counts = {"steps": CLIENTS * args.epochs * EXAMPLES // BATCH, "test_batches": -(-len(test[0]) // _BATCH_SIZE)}
    held_out = images.repeat(_BATCH_SIZE // BATCH, 1, 1, 1)
    work = partial(usual_loop.network_alone, model, images, labels, held_out, **counts, precision=args.precision)
    while True:
        yield {"round": seconds(work, args.device)}


SIDES = {"ours": our_rounds, "usual": usual_rounds, "network": bare_rounds}


def serve_rounds(connection: Connection, side: str, name: str, args: argparse.Namespace) -> None:
    """Run a round whenever the other end of the connection asks for one, and send what was measured."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda":
        make_deterministic()
    train = read_images(args.data, "train", CLIENTS * EXAMPLES)
    test = read_images(args.data, "test", args.test_images)
    measured = SIDES[side](name, train, test, args)
    while connection.recv():
        connection.send(next(measured))


def measure(name: str, args: argparse.Namespace) -> dict[str, float | str]:
    """Return the medians of both sides, their ratio, and the shares of the server and of a checkpoint."""
    context = multiprocessing.get_context("spawn")
    sides, processes = {}, []
    for side in SIDES:
        sides[side], end = context.Pipe()
        processes.append(context.Process(target=serve_rounds, args=(end, side, name, args), daemon=True))
        processes[-1].start()
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(args.repeats + 1):
        for side, connection in sides.items():
            connection.send(True)
            found[side].append(connection.recv()["round"])
    sides["ours"].send(True)
    beside = sides["ours"].recv()
    for connection, process in zip(sides.values(), processes, strict=True):
        connection.send(False)
        process.join()
    # The first round of each warms up.
    medians = {side: statistics.median(measured[1:]) for side, measured in found.items()}
    ours = medians["ours"]
    shares = {name: seconds / ours for name, seconds in beside.items()}
    return {"model": name, **medians, "ratio": medians["usual"] / ours, **shares}


def main() -> None:
    """Print a line for every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 as parquet")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--models", nargs="+", default=["lenet", "cnn", "resnet20"])
    parser.add_argument("--engine", default="auto", choices=["auto", "loop", "vmap"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of both sides, instead of each its own number")
    args = parser.parse_args()
    card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {card}, {args.threads or 'own'} threads, {args.epochs} local epochs")
    for name in args.models:
        found = measure(name, args)
        print(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in found.items()}), flush=True)


if __name__ == "__main__":
    main()
