"""What the ServerApp of a run over nodes keeps in memory, by the number of models and their size.

    python benchmarks/flower_server.py --models 2 4 8 --model-bytes 100_000_000

The rounds are real ones, of FedMR. Messages are taken apart and put together by Flower's own code; in place of a
SuperLink and nodes there is a folder with the pieces of a reply for each client. Memory is what Linux calls RssAnon:
that which the process holds, without the pages of files that the system takes back when it needs them.

Needs `pip install 'fedmr-merge[flower]'`, and Linux.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flower import LARGE_MODEL, recipe

PIECE_BYTES = 4_000_000  #: the size of the largest tensor of the model


def held() -> int:
    """Return the bytes that this process holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("this system does not say how much memory a process holds: Linux does")


class Peak:
    """The most that this process has held since the object was made, looked at every millisecond."""

    def __init__(self) -> None:
        self.bytes = held()
        self._over = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._over.wait(0.001):
            self.bytes = max(self.bytes, held())

    def stop(self) -> int:
        """Return the peak, and look no more."""
        self._over.set()
        return self.bytes


class FolderGrid:
    """Behaves like Flower's `Grid`: takes every message apart, and puts the same replies together in every round."""

    def __init__(self, folder: Path, federation: Any) -> None:
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1  # as Flower sets them in a ServerApp
        self.folder = folder
        self.examples = federation.partition.sizes
        self.steps = [len(federation.epoch_step_sizes(client)) for client in range(len(self.examples))]
        self.replies = [self._write_reply(federation, client) for client in range(len(self.examples))]
        self._asked: dict[str, Any] = {}

    def _write_reply(self, federation: Any, client: int) -> tuple[str, list[str]]:
        """Write the pieces of a model whose every number is that of the client; returns their names."""
        import torch
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

        from fedmr_merge.federated.cohort import weights_of
        from fedmr_merge.flower.arrays import to_array, to_record

        generator = torch.Generator().manual_seed(client)
        weights = {
            name: torch.randn(tensor.shape, generator=generator)
            for name, tensor in weights_of(federation.module).items()
        }
        record = to_record({name: to_array(tensor) for name, tensor in weights.items()})
        pieces = get_all_nested_objects(record)
        for name, piece in pieces.items():
            (self.folder / name).write_bytes(piece.deflate())
        return record.object_id, list(pieces)

    def get_nodes(self) -> list[Any]:
        """Return a node for each client."""
        return [
            SimpleNamespace(node_id=100 + client, name=f"client-{client}", status="online")
            for client in range(len(self.examples))
        ]

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        """Take messages apart, as Flower does, and forget the pieces."""
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
        from flwr.supercore.inflatable.inflatable_utils import push_objects

        [message] = messages
        with no_object_id_recompute():
            name = message.object_id
            push_objects(get_all_nested_objects(message), lambda _name, _content: None)
        self._asked[name] = (message.metadata.dst_node_id, dict(message.content["facts"]))
        return [name]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        """Put a reply together, as Flower does."""
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects

        from fedmr_merge.flower.wire import ReplyFacts, pack_facts

        [name] = message_ids
        node, asked = self._asked.pop(name)
        client = asked["client"]
        record, pieces = self.replies[client]
        contents = pull_objects(pieces, lambda piece: (self.folder / piece).read_bytes())
        sides = (asked["version"], asked["recipe"], asked["round"], client)
        content = pack_facts(ReplyFacts(*sides, self.examples[client], self.steps[client], 1.0, True))
        content["model"] = inflate_object_from_contents(record, contents)
        metadata = SimpleNamespace(reply_to_message_id=name, src_node_id=node)
        return [SimpleNamespace(metadata=metadata, has_error=lambda: False, content=content)]


def server_run(models: int, model_bytes: int, rounds: int = 3) -> dict[str, int]:
    """Follow a recipe in this process, which has done nothing else; returns what it held, in bytes.

    `before` is what it held when the run was about to start, without the module; `peak` the most that it held then.
    """
    from fedmr_merge.federated.cohort import weights_of
    from fedmr_merge.federated.training.freed_memory import return_freed_memory
    from fedmr_merge.flower.engine import FlowerEngine
    from fedmr_merge.recipe.prepare import prepare
    from fedmr_merge.recipe.run import Run

    return_freed_memory()  # as the ServerApp does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "large_model.py").write_text(LARGE_MODEL)
        sys.path.insert(0, name)
        model = {"name": "large_model:Large", "pieces": max(1, model_bytes // PIECE_BYTES)}
        checked = recipe(models, rounds, model=model)
        (folder / "pieces").mkdir()
        grid = FolderGrid(folder / "pieces", prepare(checked))
        gc.collect()
        with Run(checked, folder / "run", engine=FlowerEngine(grid, checked, folder)) as run:
            size = sum(tensor.nbytes for tensor in weights_of(run.federation.module).values())
            before, peak = held() - size, Peak()
            for _ in run.execute():
                pass
            return {"models": models, "model_bytes": size, "before": before, "peak": peak.stop()}


def measure(models: int, model_bytes: int) -> dict[str, int]:
    """Return what `server_run` returns, from a process of its own."""
    program = f"import json, flower_server as m; print(json.dumps(m.server_run({models}, {model_bytes})))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], check=True, env=environment, stdout=subprocess.PIPE)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure what the options name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--model-bytes", type=int, default=100_000_000)
    options = parser.parse_args()
    print("| models | of | before the first round | at most | in models |")
    print("| --- " * 5 + "|")
    for models in options.models:
        found = measure(models, options.model_bytes)
        size, before, peak = found["model_bytes"], found["before"], found["peak"]
        print(
            f"| {models} | {size / 1e6:.0f} MB | {before / 1e6:.0f} MB | {peak / 1e6:.0f} MB | "
            f"{(peak - before) / size:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
