"""Time rounds of FedAvg against the usual per-client loop, and print the ratios.

    python benchmarks/training.py --data CIFAR10_PARQUET_FOLDER [--device cuda] [--models lenet cnn resnet20]

One round: 10 clients of 500 CIFAR-10 images, batches of 50, E local epochs, an average, and an evaluation on the test
images. The usual loop is written below as it is in most research code: PIL images through `ToTensor` and `Normalize`
in a `DataLoader`, a module per client by `deepcopy` of state dicts, a new `torch.optim.SGD` each, `loss.backward()`.
Both run the same network on the same images, interleaved; seconds are CPU seconds of the process on a CPU, wall-clock
seconds on a GPU, and medians over the repeats.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.catalogue import ARCHITECTURES
from fedmr_merge.federated.clients import Partition
from fedmr_merge.federated.data import ImageData
from fedmr_merge.federated.federation import Federation, Training, open_federation
from fedmr_merge.federated.models._torchvision import torchvision
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds

CLIENTS, EXAMPLES, BATCH, LR, MOMENTUM = 10, 500, 50, 0.01, 0.9


def read_images(folder: Path, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first images of a split, uint8 [count, 32, 32, 3], and their labels."""
    (path,) = folder.rglob(f"{split}-*.parquet")
    table = pq.read_table(path).slice(0, count).to_pylist()
    images = [np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in table]
    return np.stack(images), np.array([row["label"] for row in table])


class PilImages(Dataset):
    """Images the way torchvision's CIFAR10 hands them out."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        from torchvision import transforms

        assert torchvision is not None  # imported first, where it can be
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def usual_round(
    module: torch.nn.Module, clients: list[PilImages], test: PilImages, epochs: int, device: torch.device
) -> None:
    """Train every client in turn, average into `module`, evaluate."""
    trained = []
    for client in clients:
        model = deepcopy(module).train()
        optimiser = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        loader = DataLoader(client, batch_size=BATCH, shuffle=True)
        for _ in range(epochs):
            for images, labels in loader:
                images, labels = images.to(device), labels.to(device)
                optimiser.zero_grad()
                loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimiser.step()
        trained.append(deepcopy(model.state_dict()))
    average = deepcopy(trained[0])
    for name in average:
        if average[name].is_floating_point():
            for other in trained[1:]:
                average[name] += other[name]
            average[name] = average[name] / len(trained)
    module.load_state_dict(average)
    module.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in DataLoader(test, batch_size=500):
            logits = module(images.to(device))
            correct += (logits.argmax(1) == labels.to(device)).sum().item()


def make_federation(name: str, train: tuple, test: tuple, args: argparse.Namespace) -> Federation:
    """Put the same clients together for this package."""
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
    architecture = ARCHITECTURES.find(name)()
    return open_federation(architecture, data, partition, training, seed=0, device=args.device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long something takes: CPU seconds on a CPU, wall-clock seconds on a GPU."""
    clock = time.process_time
    if device.type == "cuda":
        clock = time.perf_counter
        torch.cuda.synchronize()
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(name: str, train: tuple, test: tuple, args: argparse.Namespace) -> dict[str, float | str]:
    """Return the medians of both, and their ratio."""
    federation = make_federation(name, train, test, args)
    device = federation.device
    algorithm = FedAvg()
    state = algorithm.start(federation, initial_state(federation))
    rounds = run_rounds(federation, algorithm, state, first_round=1, rounds=10**6)
    module = deepcopy(federation.module)
    parts = zip(np.split(train[0], CLIENTS), np.split(train[1], CLIENTS), strict=True)
    clients, held_out = [PilImages(*part) for part in parts], PilImages(*test)
    ours, usual = [], []
    for _ in range(args.repeats + 1):
        ours.append(seconds(lambda: next(rounds), device))
        usual.append(seconds(lambda: usual_round(module, clients, held_out, args.epochs, device), device))
    # The first round of each warms up.
    here, there = statistics.median(ours[1:]), statistics.median(usual[1:])
    return {"model": name, "engine": federation.engine, "ours": here, "usual": there, "ratio": there / here}


def main() -> None:
    """Print a line for every model, and JSON for a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 as parquet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=["lenet", "cnn", "resnet20"])
    parser.add_argument("--engine", default="auto", choices=["auto", "loop", "vmap"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train = read_images(args.data, "train", CLIENTS * EXAMPLES)
    test = read_images(args.data, "test", args.test_images)
    card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {card}, {args.threads} threads, {args.epochs} local epochs")
    for name in args.models:
        found = measure(name, train, test, args)
        print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in found.items()}), flush=True)


if __name__ == "__main__":
    main()
