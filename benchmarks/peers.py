"""Time rounds of FedAvg beside other packages for federated learning, each in an environment of its own.

    python benchmarks/peers.py --data CIFAR10_PARQUET_FOLDER --threads 1 --repeats 5
        --peer pfl-research=PYTHON --peer flower=PYTHON --peer pfllib=PYTHON:CHECKOUT --peer authors=PYTHON:CHECKOUT

A peer is named with the Python that has what it needs, and where it is no package with a checkout of its repository:

    pfl-research   pip install 'pfl[pytorch]'                 its simulated backend
    flower         pip install 'flwr[simulation]' torch       its simulation with ray, evaluated by the server
    pfllib         github.com/TsingZ0/PFLlib; torch, torchvision, scikit-learn, h5py
    authors        github.com/HMHelloWorld/FedMR; torch, torchvision: the code of FedMR's authors

A round: LeNet-5, 10 clients with 500 images of CIFAR-10 each, batches of 50, 5 local epochs of SGD with momentum, an
average, an evaluation of the global model on the test images. What each does in it is its own: see `peer_rounds.py`.
Rounds alternate between the peers, which are processes that wait while another one computes; the first round of each
warms up. CPU seconds are those of a process and all that it has started, as Linux counts them. Medians, with the
shortest and the longest; `accuracy` is that after the last round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from training import CLIENTS, EXAMPLES, read_images

WORKER = Path(__file__).with_name("peer_rounds.py")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Peer:
    """A contender: a process that runs a round whenever it is asked to."""

    name: str
    process: subprocess.Popen[str]
    version: str = ""
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    accuracy: float = 0.0

    def round(self) -> None:
        """Let it run a round, and keep what that took."""
        cpu, wall = cpu_seconds(self.process.pid), time.perf_counter()
        assert self.process.stdin is not None
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(cpu_seconds(self.process.pid) - cpu)
        self.accuracy = answer["accuracy"]

    def answer(self) -> dict[str, float]:
        """Wait for what it says."""
        stream: IO[str] | None = self.process.stdout
        assert stream is not None
        line = stream.readline()
        if not line:
            raise SystemExit(f"{self.name} has ended: {self.process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds of a process and of all below it, those that have ended included."""
    parents: dict[int, list[int]] = {}
    spent: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            values = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents.setdefault(int(values[1]), []).append(int(entry.name))
        spent[int(entry.name)] = sum(map(int, values[11:15])) / _TICKS
    return sum(spent.get(each, 0.0) for each in below(process, parents))


def below(process: int, parents: dict[int, list[int]]) -> Iterator[int]:
    """Yield a process and all that it has started."""
    yield process
    for child in parents.get(process, ()):
        yield from below(child, parents)


def start(name: str, where: str, data: Path, threads: int) -> Peer:
    """Start a peer's process; returns when it is ready for its first round."""
    python, _, checkout = where.partition(":")
    command = [python, str(WORKER), name, "--data", str(data), "--threads", str(threads)]
    command += ["--checkout", str(Path(checkout).resolve())] if checkout else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.NamedTemporaryFile("w", prefix=f"{name}-", suffix=".log", delete=False) as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    print(f"{name}: its own output is in {log.name}", file=sys.stderr)
    peer = Peer(name, process)
    peer.version = str(peer.answer()["version"])
    return peer


def main() -> None:
    """Print a line for every peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 as parquet")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON[:CHECKOUT]")
    parser.add_argument("--threads", type=int, default=1, help="of each; as many clients train at a time")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.npz"
        train = read_images(args.data, "train", CLIENTS * EXAMPLES)
        test = read_images(args.data, "test", args.test_images)
        np.savez(data, train_x=train[0], train_y=train[1], test_x=test[0], test_y=test[1])
        named = [("fedmr-merge", sys.executable), *(each.split("=", 1) for each in args.peer)]
        peers = [start(name, where, data, args.threads) for name, where in named]
        for _ in range(args.repeats + 1):
            for peer in peers:
                peer.round()
        for peer in peers:
            peer.process.stdin.close()  # type: ignore[union-attr]
            peer.process.wait()
    ours = statistics.median(peers[0].cpu[1:])
    print(f"{args.threads} threads, {args.repeats} rounds after the first, {args.test_images} test images")
    for peer in peers:
        cpu, wall = peer.cpu[1:], peer.wall[1:]
        middle = statistics.median(cpu)
        print(
            f"{peer.name:13s} CPU s {middle:6.2f} ({min(cpu):.2f} to {max(cpu):.2f})  x {middle / ours:5.2f}  "
            f"wall s {statistics.median(wall):6.2f} ({min(wall):.2f} to {max(wall):.2f})  "
            f"accuracy {100 * peer.accuracy:.2f} %  {peer.version}"
        )


if __name__ == "__main__":
    main()
