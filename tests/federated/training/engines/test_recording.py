"""Steps that are recorded: they read what stays at its address, and train to what they train to otherwise.

A CPU records nothing. In its place a step is done again, and what it reads is compared with what it read before.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from small_federation import digest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from unlike_clients import assert_alike, run, unlike_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated import rounds
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.training.engines import _recording
from fedmr_merge.federated.training.engines._plan import Step, padded
from fedmr_merge.federated.training.engines.vmap import Vmap
from fedmr_merge.federated.training.schedule import LrSchedule


class Reads(TorchDispatchMode):
    """The addresses that operations read from, without those of tensors that were made meanwhile."""

    def __init__(self):
        super().__init__()
        self.addresses, self._made = set(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = {tensor.untyped_storage().data_ptr() for tensor in self._made}
        result = function(*args, **(kwargs or {}))
        read = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self.addresses |= read - made
        self._made += [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return result


class Recorder:
    """Does a recorded step again, and requires that it reads from the same addresses each time."""

    def __init__(self):
        self.steps, self.replays = 0, 0

    def __call__(self, step):
        self.steps += 1
        first = []

        def replay():
            self.replays += 1
            with Reads() as reads:
                step()
            first.append(reads.addresses)
            assert reads.addresses == first[0]

        return replay


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(rounds, "Vmap", partial(Vmap, record=recorder))
    return recorder


@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_recorded_steps_of_every_method_train_to_the_same(recorder, method):
    algorithm = ALGORITHMS.find(method)()
    expected = run(unlike_federation(engine="loop"), algorithm)
    assert_alike(run(unlike_federation(engine="vmap"), algorithm), expected)
    assert recorder.replays > recorder.steps > 0


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adam", "momentum": 0.0, "eps": 1e-3},
        {"clip_norm": 0.3},
        {"lr_schedule": LrSchedule("exponential", factor=0.5)},
        {"local_steps": 7, "local_epochs": 5},
        {"cohort_chunk": 2},
    ],
)
def test_recorded_steps_with_other_options_train_to_the_same(recorder, options):
    looped = {name: value for name, value in options.items() if name != "cohort_chunk"}
    expected = run(unlike_federation(engine="loop", **looped), FedMR())
    assert_alike(run(unlike_federation(engine="vmap", **options), FedMR()), expected)
    assert recorder.replays


def test_steps_are_recorded_once_for_all_rounds(recorder):
    run(unlike_federation(engine="vmap"), FedAvg(), 6)
    assert 3 <= recorder.steps <= 5  # so many clients have a full batch together


def test_fewer_clients_are_filled_up_by_others_to_no_effect(recorder, monkeypatch):
    expected = run(unlike_federation(engine="loop"), FedMR())
    monkeypatch.setattr("fedmr_merge.federated.training.engines._plan._NUMBERS", 2)
    found = run(unlike_federation(engine="vmap"), FedMR())
    assert_alike(found, expected)
    assert recorder.steps <= 2
    assert digest(found[-1].state) == digest(run(unlike_federation(engine="vmap"), FedMR())[-1].state)


@pytest.mark.parametrize("slots", [1, 5, 8, 10, 33, 100])
def test_there_are_few_numbers_of_clients_in_a_round(slots):
    for clients in {1, slots // 3 + 1, slots}:
        reached = {stop: padded(Step(0, stop, 50), clients, slots) for stop in range(1, clients + 1)}
        assert all(stop <= end <= clients for stop, end in reached.items())
        assert len(set(reached.values())) <= 9


@pytest.mark.parametrize("message", ["operation not permitted when stream is capturing", "CUDA out of memory"])
def test_what_cannot_be_recorded_is_reported(monkeypatch, message):
    class Graph:
        def __init__(self, *_arguments, **_options):
            pass

        def __enter__(self):
            raise RuntimeError(message)

        def __exit__(self, *_error):
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    with pytest.raises(RuntimeError if "memory" in message else TrainingError, match=message):
        _recording.cuda_graph(lambda: None)
