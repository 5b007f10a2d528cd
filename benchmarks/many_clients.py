"""What grows with the number of clients: memory and CPU seconds of rounds of 100 clients out of 1,000 and of 10,000.

    python benchmarks/many_clients.py [--clients 1000 10000] [--methods fedavg fedmr …] [--rounds 5]

Every client has 10 examples of 64 numbers, so that 10,000 clients have 100,000, and takes one step with an `mlp` of
6,570 parameters: what a round costs beside training is in view. Each line is a process of its own. `open` are the CPU
seconds from the data to the first round; `round` those of a round with its evaluation on 1,000 examples, as a median;
`checkpoint` those of writing one, with its size after the last round; `MB` the largest resident memory above that of
the imported package. With `--urns`, the CPU seconds in which CluSamp selects the clients of a round out of 10,000 when
so many of them have taken part, and the memory of their distances.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmr_merge.federated.algorithms._urns import fill_urns
from fedmr_merge.federated.catalogue import ALGORITHMS, TASKS
from fedmr_merge.federated.data.features import FeatureData, Scale
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.data.tensors import Examples
from fedmr_merge.federated.federation import open_federation
from fedmr_merge.federated.models.mlp import Mlp
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import begin_stage, run_rounds
from fedmr_merge.federated.training.options import Training
from fedmr_merge.runs.checkpoints import Saved, save_state
from fedmr_merge.runs.names import Place

SELECTED, EXAMPLES, FEATURES, CLASSES, TESTED = 100, 10, 64, 10, 1000


def measured(method: str, clients: int, rounds: int) -> dict[str, float]:
    """Return what opening, rounds and a checkpoint of a method cost with so many clients."""
    torch.set_num_threads(1)
    memory, begun = peak(), time.process_time()
    algorithm = ALGORITHMS.find(method)()
    partition = Partition.of(np.arange(clients * EXAMPLES).reshape(clients, EXAMPLES))
    training = Training(clients_per_round=SELECTED, local_epochs=1, batch_size=EXAMPLES)
    federation = open_federation(Mlp(), data_of(clients), partition, training, seed=0, task=TASKS.find(TASK)())
    state = begin_stage(federation, algorithm, initial_state(federation))
    opened = time.process_time() - begun
    took = []
    before = time.process_time()
    for result in run_rounds(federation, algorithm, state, first_round=1, rounds=rounds):
        took.append(time.process_time() - before)
        state, before = result.state, time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        before = time.process_time()
        save_state(Path(folder), Saved(Place(rounds, 0, method), state, 1, False), federation)
        written = time.process_time() - before
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "open s": opened,
        "round s": statistics.median(took),
        "checkpoint s": written,
        "checkpoint MB": size / 1e6,
        "MB": peak() - memory,
    }


TASK = "tabular-classification"


def data_of(clients: int) -> FeatureData:
    """Return random rows for so many clients."""
    rng = torch.Generator().manual_seed(0)
    parts = [
        Examples(torch.randn(count, FEATURES, generator=rng), torch.randint(0, CLASSES, (count,), generator=rng))
        for count in (clients * EXAMPLES, TESTED)
    ]
    names = tuple(map(str, range(CLASSES)))
    features = tuple(f"x{number}" for number in range(FEATURES))
    scales = (Scale(0.0, 1.0),) * FEATURES
    return FeatureData(train=parts[0], test=parts[1], class_names=names, feature_names=features, scales=scales)


def urns(clients: int, known: int) -> dict[str, float]:
    """Return the CPU seconds of a selection when the updates of `known` clients are known, and what these hold."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(known + 1, 16)).astype(np.float32)
    squares = (points**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0))
    sizes, who = [EXAMPLES] * clients, sorted(rng.choice(clients, known, replace=False).tolist())
    begun, memory = time.process_time(), peak()
    fill_urns(sizes, SELECTED, who, distances)
    return {"selection s": time.process_time() - begun, "distances MB": distances.nbytes / 1e6, "MB": peak() - memory}


def peak() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _send(pipe: Any, work: Any, arguments: tuple[Any, ...]) -> None:
    pipe.send(work(*arguments))


def apart(work: Any, *arguments: Any) -> dict[str, float]:
    """Return what a function returns in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_send, args=(theirs, work, arguments))
    process.start()
    found: dict[str, float] = ours.recv()
    process.join()
    return found


def show(head: str, found: dict[str, float]) -> None:
    """Print a line."""
    print(f"{head:28s}" + "  ".join(f"{name} {value:9.3f}" for name, value in found.items()), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", nargs="+", type=int, default=[1000, 10_000])
    parser.add_argument("--methods", nargs="*", default=["fedavg", "fedmr", "scaffold", "clusamp"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--urns", nargs="*", type=int, default=[], help="clients that have taken part")
    args = parser.parse_args()
    for method in args.methods:
        for clients in args.clients:
            show(f"{method}, {clients:,} clients", apart(measured, method, clients, args.rounds))
    for known in args.urns:
        show(f"clusamp, {known:,} of 10,000", apart(urns, 10_000, known))


if __name__ == "__main__":
    main()
