"""Rounds of one package for federated learning, in its own environment; `peers.py` starts this and asks for each.

Every function yields the accuracy of the global model after each round. The network, the data and the numbers are the
same for all; how clients are trained, averaged and evaluated is left to each package as it does it by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import sys
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
import torch
from torch import nn

CLIENTS, EXAMPLES, BATCH, TEST_BATCH, EPOCHS, LR, MOMENTUM = 10, 500, 50, 200, 5, 0.01, 0.9
ROUNDS = 10_000  # more than anybody waits for

Data = dict[str, np.ndarray]


def lenet() -> nn.Module:
    """Return LeNet-5 for 32x32 colour images."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def tensors(data: Data, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images of a part, normalised to -1..1, and their labels."""
    images = torch.from_numpy(data[f"{part}_x"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(), torch.from_numpy(data[f"{part}_y"]).long()


def of_client(client: int) -> slice:
    """Return which training images a client has."""
    return slice(client * EXAMPLES, (client + 1) * EXAMPLES)


def fedmr_merge(data: Data, options: Namespace) -> Iterator[float]:
    """fedmr-merge, with the engine that it chooses by itself."""
    sys.path.insert(0, str(Path(__file__).parent))
    from training import make_federation

    from fedmr_merge.federated.algorithms.fedavg import FedAvg
    from fedmr_merge.federated.protocol import State, initial_state
    from fedmr_merge.federated.rounds import run_rounds

    defaults = {"epochs": EPOCHS, "engine": "auto", "precision": "fp32", "compile": False, "device": "cpu"}
    parts = [(data[f"{part}_x"], data[f"{part}_y"]) for part in ("train", "test")]
    federation = make_federation("lenet", parts[0], parts[1], Namespace(**defaults, threads=options.threads))
    torch.set_num_threads(1)  # as a run does with a network of this size: each core has a client
    algorithm = FedAvg()
    names = initial_state(federation).global_weights
    weights = dict(zip(names, lenet().state_dict().values(), strict=True))  # all begin with the same
    state = algorithm.start(federation, State.from_global(weights))
    for result in run_rounds(federation, algorithm, state, first_round=1, rounds=ROUNDS):
        yield result.metrics["test_accuracy"]


def authors(data: Data, options: Namespace) -> Iterator[float]:
    """FedMR's authors: `FedAvg` of their `main_fed.py`, call by call, evaluated in every round."""
    sys.path.insert(0, options.checkout)
    from models.Fed import Aggregation
    from models.Nets import CNNCifar
    from models.test import test_img
    from models.Update import LocalUpdate_FedAvg

    args = Namespace(local_bs=BATCH, bs=TEST_BATCH, optimizer="sgd", lr=LR, momentum=MOMENTUM, local_ep=EPOCHS)
    args = Namespace(**vars(args), device="cpu", gpu=-1, verbose=False, num_classes=10)
    train, test = (PilImages(data, part) for part in ("train", "test"))
    model = CNNCifar(args)
    model.train()
    while True:
        trained, sizes = [], []
        for client in np.random.choice(range(CLIENTS), CLIENTS, replace=False):
            where = of_client(int(client))
            local = LocalUpdate_FedAvg(args=args, dataset=train, idxs=set(range(where.start, where.stop)))
            trained.append(copy.deepcopy(local.train(net=copy.deepcopy(model).to(args.device))))
            sizes.append(EXAMPLES)
        model.load_state_dict(Aggregation(trained, sizes))
        yield float(test_img(model, test, args)[0]) / 100


class PilImages(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Images as torchvision's CIFAR10 hands them out, with the transforms of the authors' `get_dataset.py`."""

    def __init__(self, data: Data, part: str) -> None:
        from torchvision import transforms

        self.images, self.labels = data[f"{part}_x"], data[f"{part}_y"].tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def pfllib(data: Data, options: Namespace) -> Iterator[float]:
    """PFLlib: the rounds of its `FedAvg.train`, call by call; each client tests with a tenth of the test images.

    Its clients have SGD without momentum; it is set. It evaluates what a round starts with, training losses included.
    """
    folder = Path(tempfile.mkdtemp())  # it reads ../dataset
    (folder / "system").mkdir()
    each = len(data["test_y"]) // CLIENTS
    images = {part: tensors(data, part) for part in ("train", "test")}
    for client in range(CLIENTS):
        for part, where in (("train", of_client(client)), ("test", slice(client * each, (client + 1) * each))):
            path = folder / "dataset" / "cifar10" / part / f"{client}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, data={"x": images[part][0][where].numpy(), "y": images[part][1][where].numpy()})
    os.chdir(folder / "system")
    sys.path.insert(0, str(Path(options.checkout) / "system"))
    from flcore.servers.serveravg import FedAvg

    off = ("random_join_ratio", "auto_break", "dlg_eval", "learning_rate_decay")
    none = ("few_shot", "client_drop_rate", "train_slow_rate", "send_slow_rate", "num_new_clients")
    args = Namespace(**dict.fromkeys(off, False), **dict.fromkeys(none, 0), device="cpu", dataset="cifar10")
    args = Namespace(**vars(args), num_classes=10, global_rounds=ROUNDS, local_epochs=EPOCHS, batch_size=BATCH)
    args = Namespace(**vars(args), local_learning_rate=LR, model=lenet(), num_clients=CLIENTS, join_ratio=1.0)
    args = Namespace(**vars(args), algorithm="FedAvg", time_select=False, goal="test", time_threthold=10_000)
    args = Namespace(**vars(args), save_folder_name="items", top_cnt=100, eval_gap=1, dlg_gap=100)
    args = Namespace(**vars(args), batch_num_per_client=2, fine_tuning_epoch_new=0, learning_rate_decay_gamma=0.99)
    server = FedAvg(args, 0)
    for client in server.clients:
        client.optimizer.param_groups[0]["momentum"] = MOMENTUM
    while True:
        server.selected_clients = server.select_clients()
        server.send_models()
        server.evaluate()
        for client in server.selected_clients:
            client.train()
        server.receive_models()
        server.aggregate_parameters()
        yield float(server.rs_test_acc[-1])


def pfl_research(data: Data, _: Namespace) -> Iterator[float]:
    """pfl-research: `FederatedAveraging` with its simulated backend; it goes through examples in their order."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = lenet()

        def loss(self, inputs: Any, targets: Any, is_eval: bool = False) -> Any:
            self.eval() if is_eval else self.train()
            return nn.functional.cross_entropy(self.network(inputs), targets)

        @torch.no_grad()
        def metrics(self, inputs: Any, targets: Any) -> Any:
            self.eval()
            right = (self.network(inputs).argmax(dim=1) == targets).sum().item()
            return {"accuracy": Weighted(right, len(targets))}

    images, labels = tensors(data, "train")
    users = [
        Dataset(raw_data=[images[of_client(client)], labels[of_client(client)]], user_id=str(client))
        for client in range(CLIENTS)
    ]
    order = iter(lambda: None, 0)  # every user once in a round, in turn
    turn = iter(client for _ in order for client in range(CLIENTS))
    training = FederatedDataset(lambda client: users[client], lambda: next(turn))
    network = Network()
    model = PyTorchModel(
        network,
        local_optimizer_create=partial(torch.optim.SGD, momentum=MOMENTUM),
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    found: Queue[float] = Queue()
    wanted: Queue[None] = Queue()
    test = Dataset(raw_data=list(tensors(data, "test")))

    class AfterRound(TrainingProcessCallback):  # type: ignore[type-arg]
        def after_central_iteration(self, _: Any, model: Any, **__: Any) -> Any:
            metrics = model.evaluate(test, eval_params=NNEvalHyperParams(TEST_BATCH))
            found.put(float(metrics.to_simple_dict()["Accuracy"]))
            wanted.get()
            return False, Metrics()

    def run() -> None:
        wanted.get()
        asyncio.set_event_loop(asyncio.new_event_loop())  # which a thread has not by itself
        FederatedAveraging().run(
            NNAlgorithmParams(ROUNDS, ROUNDS, CLIENTS, 0),
            SimulatedBackend(training_data=training, val_data=training),
            model,
            NNTrainHyperParams(BATCH, EPOCHS, LR, None),
            NNEvalHyperParams(TEST_BATCH),
            [AfterRound()],
        )

    yield from asked(run, wanted, found)


def asked(run: Any, wanted: Queue[None], found: Queue[float]) -> Iterator[float]:
    """Run something in a thread that does a round for each entry of `wanted`; yield what it finds."""
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while True:
        wanted.put(None)
        while thread.is_alive():  # otherwise it has printed why it ended
            with suppress(Empty):
                yield found.get(timeout=1)
                break
        else:
            return


def flower(data: Data, options: Namespace) -> Iterator[float]:
    """Flower: its `FedAvg` in a simulation of 10 nodes, one on each core; the server evaluates."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    path = options.data
    client_app, server_app = ClientApp(), ServerApp()
    found: Queue[float] = Queue()
    wanted: Queue[None] = Queue()

    @client_app.train()
    def train(message: Any, context: Any) -> Any:
        torch.set_num_threads(1)
        loaded = np.load(path)
        images, labels = tensors({key: loaded[key] for key in ("train_x", "train_y")}, "train")
        where = of_client(int(context.node_config["partition-id"]))
        examples = torch.utils.data.TensorDataset(images[where], labels[where])
        batches = torch.utils.data.DataLoader(examples, batch_size=BATCH, shuffle=True)
        model = lenet()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        for _ in range(EPOCHS):
            for inputs, targets in batches:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": EXAMPLES}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    images, labels = tensors(data, "test")

    @torch.no_grad()
    def evaluate(round: int, arrays: Any) -> Any:
        if round:
            model = lenet().eval()
            model.load_state_dict(arrays.to_torch_state_dict())
            right = [
                (model(x).argmax(dim=1) == y).sum().item()
                for x, y in zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True)
            ]
            found.put(sum(right) / len(labels))
            wanted.get()
        return MetricRecord({"accuracy": 0.0})

    class OfAll(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            answers = list(replies)
            if len(answers) < CLIENTS or any(answer.has_error() for answer in answers):
                raise RuntimeError(f"round {server_round}: a client has failed, and its time does not count")
            return super().aggregate_train(server_round, answers)

    @server_app.main()
    def serve(grid: Any, _: Any) -> None:
        strategy = OfAll(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
        strategy.start(grid, ArrayRecord(lenet().state_dict()), num_rounds=ROUNDS, evaluate_fn=evaluate)

    def run() -> None:
        wanted.get()
        resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": options.threads}}
        run_simulation(server_app, client_app, num_supernodes=CLIENTS, backend_config=resources)

    yield from asked(run, wanted, found)


PEERS = {
    "fedmr-merge": (fedmr_merge, "torch"),
    "authors": (authors, "torch"),
    "pfllib": (pfllib, "torch"),
    "pfl-research": (pfl_research, "pfl"),
    "flower": (flower, "flwr"),
}


def main() -> None:
    """Run a round for every line of the input, and print what came out as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--checkout", type=str, default="")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print is not an answer
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    np.random.seed(0)
    rounds, package = PEERS[options.peer]
    from importlib.metadata import version

    with np.load(options.data) as loaded:
        data = {name: loaded[name] for name in loaded.files}
    results = rounds(data, options)
    answers.write(json.dumps({"version": f"{package} {version(package)}"}) + "\n")
    answers.flush()
    for _ in sys.stdin:
        answers.write(json.dumps({"accuracy": next(results)}) + "\n")
        answers.flush()
    os._exit(0)  # threads of a package may wait for ever


if __name__ == "__main__":
    main()
