"""Clients that train side by side, a core each, train to the bytes that they train to one after the other."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from small_federation import Normalised, digest, make_federation
from torch import nn

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedgen import FedGen
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.models.base import Architecture, Classifier
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.training.engines import loop
from fedmr_merge.federated.training.optimizers import Sgd


def run(federation, algorithm, rounds=2):
    state = algorithm.start(federation, initial_state(federation))
    return [digest(result.state) for result in run_rounds(federation, algorithm, state, first_round=1, rounds=rounds)]


@pytest.fixture
def threads_seen(monkeypatch):
    """The threads in which clients trained."""
    seen = set()
    train = loop._Seat.train

    def watched(self, *arguments):
        seen.add((threading.current_thread(), torch.get_num_threads()))
        return train(self, *arguments)

    monkeypatch.setattr(loop._Seat, "train", watched)
    return seen


@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_the_same_bytes_on_any_number_of_cores(method, threads_seen):
    federation, algorithm = make_federation(Normalised()), ALGORITHMS.find(method)()
    expected = run(replace(federation, cores=1), algorithm)
    assert {thread for thread, _ in threads_seen} == {threading.main_thread()}
    threads_seen.clear()
    assert run(replace(federation, cores=3), algorithm) == expected
    assert len({thread for thread, _ in threads_seen} - {threading.main_thread()}) > 1


def test_the_same_bytes_where_a_weight_is_used_twice_in_bfloat16():
    # Torch keeps rounded weights in a cache that threads share.
    federation, algorithm = make_federation(precision="bf16", batch_size=2, local_epochs=6), FedGen()
    expected = run(replace(federation, cores=1), algorithm, 3)
    assert run(replace(federation, cores=3), algorithm, 3) == expected


class _Dropping(Classifier):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 3)

    def features(self, images):
        return F.dropout(images.flatten(1), 0.5, self.training)

    def head(self, features):
        return self.fc(features)


@dataclass(frozen=True)
class Dropping(Architecture):
    """Draws by a function: no module tells that it does."""

    def build(self, image_shape, num_classes):
        return _Dropping()


def test_a_model_that_draws_at_random_has_torchs_generator_to_itself(threads_seen):
    federation = make_federation(Dropping())
    expected = run(replace(federation, cores=1), FedAvg())
    assert run(replace(federation, cores=3), FedAvg()) == expected
    assert {thread for thread, _ in threads_seen} == {threading.main_thread()}


@pytest.mark.parametrize("cores", [1, 3])
def test_torchs_threads_are_divided_among_the_models_of_a_round(cores, threads_seen):
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        run(replace(make_federation(), cores=cores), FedAvg(), 1)
        assert {threads for _, threads in threads_seen} == {2}
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, TrainingError])
def test_what_ends_one_client_ends_the_others_after_their_step(error, monkeypatch):
    steps = []
    begun = threading.Barrier(3, timeout=30)

    def failing(optimizer, gradients):
        steps.append(threading.current_thread())
        if steps.count(threading.current_thread()) == 1:
            begun.wait()
        if threading.current_thread().name.endswith("_0"):
            raise error("stop")

    monkeypatch.setattr(Sgd, "step", failing)
    federation = replace(make_federation(local_epochs=500), cores=3)
    before = threading.active_count()
    with pytest.raises(error, match="stop"):
        run(federation, FedAvg(), 1)
    assert threading.active_count() == before
    assert len(steps) < 500
