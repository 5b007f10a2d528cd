"""What a round over nodes costs: seconds, bytes and memory, with a SuperLink and N SuperNodes on 127.0.0.1.

    python benchmarks/flower.py --nodes 2 5 10             # the digits recipe, FedMR, every node in every round
    python benchmarks/flower.py --model-bytes 500_000_000  # one large model, to one node and back

Needs `pip install 'fedmr-merge[flower]'`. All nodes share this machine's cores, so that N nodes take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmr_merge.recipe.run import RoundDone, Run
from fedmr_merge.recipe.schema import Recipe, parse_recipe

PROGRAMS = ("flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp", "flwr-clientapp")
LARGE_MODEL = '''
import torch
from dataclasses import dataclass
from torch import nn
from fedmr_merge.federated.models.base import Architecture, Classifier

class _Large(Classifier):
    def __init__(self, width, outputs):
        super().__init__()
        self.out = nn.Linear(64, outputs)
        self.ballast = nn.ParameterList([nn.Parameter(torch.zeros(1_000_000)) for _ in range(width)])
    def features(self, images):
        return images.flatten(1)
    def head(self, features):
        return self.out(features)

@dataclass(frozen=True)
class Large(Architecture):
    """A linear model with ballast: a million parameters a piece, which no loss depends on."""
    pieces: int = 1
    def build(self, example_shape, outputs):
        return _Large(self.pieces, outputs)
'''


def recipe(clients: int, rounds: int, **changes: Any) -> Recipe:
    """Return the recipe that is measured."""
    content = {
        "name": "measured",
        "data": {"name": "digits", "partition": {"kind": "iid", "clients": clients}},
        "model": {"name": "cnn"},
        "training": {"clients_per_round": clients, "local_epochs": 1},
        "deployment": {"timeout_seconds": 1200},
        "stages": [{"fedmr": {"rounds": rounds}}],
    }
    return parse_recipe(content | changes, "benchmarks/flower.py")


@dataclass
class Watch:
    """The largest memory of each kind of Flower's processes, and the CPU's time that they took."""

    folder: Path
    peaks: dict[str, int] = field(default_factory=dict)
    ticks: dict[tuple[str, str], int] = field(default_factory=dict)  #: of the CPU, by kind and process
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            for path in Path("/proc").glob("[0-9]*"):
                try:
                    if f"FLWR_HOME={self.folder}".encode() not in (path / "environ").read_bytes():
                        continue
                    words = (path / "cmdline").read_bytes().split(b"\0")
                    name = next(name for word in words if (name := word.decode().rpartition("/")[2]) in PROGRAMS)
                    status = (path / "status").read_text()
                    peak = int(status.split("VmHWM:")[1].split()[0])
                    numbers = (path / "stat").read_text().rpartition(")")[2].split()
                except (OSError, StopIteration, IndexError):
                    continue
                self.peaks[name] = max(self.peaks.get(name, 0), peak)
                self.ticks[name, path.name] = int(numbers[11]) + int(numbers[12])

    @property
    def client_seconds(self) -> float:
        """The median CPU seconds of a ClientApp, which does not depend on what else the machine does."""
        return statistics.median(self._ticks_of("flwr-clientapp")) / os.sysconf("SC_CLK_TCK")

    @property
    def seconds(self) -> float:
        """The CPU seconds of all processes together."""
        return sum(self.ticks.values()) / os.sysconf("SC_CLK_TCK")

    def _ticks_of(self, name: str) -> list[int]:
        return [ticks for (kind, _), ticks in self.ticks.items() if kind == name]

    def of(self, name: str) -> str:
        """Return the peak of a kind of processes."""
        return f"{self.peaks.get(name, 0) / 1024:.0f} MB"


def measure(checked: Recipe, clients: int, code: Sequence[Path] = ()) -> None:
    """Run a recipe in one process and over nodes, and print what the nodes cost."""
    from fedmr_merge.flower.rehearsal import CONNECTION, Rehearsal
    from fedmr_merge.flower.server import ServerOptions
    from fedmr_merge.flower.submit import submit

    with tempfile.TemporaryDirectory() as folder, Run(checked, Path(folder) / "here") as run:
        here = [event.seconds for event in run.execute() if isinstance(event, RoundDone)]
    names = [f"client-{client}" for client in range(clients)]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Rehearsal(names) as running, Watch(running.folder) as watch:
        started = time.monotonic() - begun
        out, idle = Path(folder) / "run", watch.seconds
        there = [
            event["seconds"]
            for event in submit(checked, CONNECTION, ServerOptions(out=str(out)), code)
            if event["event"] == "round"
        ]
        busy = (watch.seconds - idle) / len(there)
        lines = [json.loads(line) for line in (out / "deployment.jsonl").read_text().splitlines()]
    seconds, training = statistics.median(there), statistics.median(here)
    print(
        f"| {clients} | {started:.0f} | {seconds:.1f} | {seconds - training:.1f} | {lines[-1]['bytes_sent']:,} | "
        f"{lines[-1]['bytes_received']:,} | {watch.of('flower-superlink')} | {watch.of('flower-supernode')} + "
        f"{watch.of('flower-superexec')} | {watch.of('flwr-serverapp')} | {watch.of('flwr-clientapp')}, "
        f"{watch.client_seconds:.1f} CPU s | {busy:.0f} |",
        flush=True,
    )


def large_model(model_bytes: int) -> None:
    """Send one large model to one node and back."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "large_model.py").write_text(LARGE_MODEL)
        sys.path.insert(0, folder)
        model = {"name": "large_model:Large", "pieces": max(1, model_bytes // 4_000_000)}
        checked = recipe(1, 1, model=model, stages=[{"fedavg": {"rounds": 1}}])
        measure(checked, 1, [Path(folder)])


def main() -> None:
    """Measure what the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model-bytes", type=int)
    options = parser.parse_args()
    if options.nodes or options.model_bytes:
        columns = "nodes|start s|s a round|beyond training|bytes sent|received|SuperLink|SuperNode|server|client|CPU s"
        print("|", columns.replace("|", " | "), "|")
        print("| --- " * 11 + "|")
    for nodes in options.nodes:
        measure(recipe(nodes, options.rounds), nodes)
    if options.model_bytes:
        large_model(options.model_bytes)


if __name__ == "__main__":
    main()
