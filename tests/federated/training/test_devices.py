"""Clients that are dealt to several devices; a CPU that is named several times stands for these."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from small_federation import digest
from unlike_clients import assert_alike, run, unlike_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.training.engines._part import Part
from fedmr_merge.recipe.prepare import visible_devices

CPU = torch.device("cpu")


def on_devices(number, **training):
    return replace(unlike_federation(engine="vmap", **training), devices=(CPU,) * number)


def digests(results):
    return [digest(replace(result.state, facts={})) for result in results]


@pytest.fixture
def threads(monkeypatch):
    """The threads in which clients trained."""
    seen, real = set(), Part.train

    def watched(self, *arguments):
        seen.add(threading.current_thread())
        return real(self, *arguments)

    monkeypatch.setattr(Part, "train", watched)
    return seen


@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_the_same_bytes_as_on_one_device_with_parts_of_the_same_size(method, threads):
    algorithm = ALGORITHMS.find(method)()
    expected = digests(run(on_devices(1, cohort_chunk=2), algorithm))
    assert threads == {threading.main_thread()}
    threads.clear()
    assert digests(run(on_devices(3), algorithm)) == expected  # 5 clients: 2, 2 and 1
    assert digests(run(on_devices(2, cohort_chunk=2), algorithm)) == expected
    assert threads
    assert threading.main_thread() not in threads


def test_it_is_what_one_device_trains_to_rounding():
    assert_alike(run(on_devices(2), FedMR()), run(on_devices(1), FedMR()))


def test_a_run_that_is_resumed_on_another_number_of_devices_gives_the_same_bytes():
    straight = run(on_devices(3), FedAvg(), 3)
    for number in (1, 2):
        resumed = run_rounds(on_devices(number), FedAvg(), straight[0].state, first_round=2, rounds=2)
        assert digests(resumed) == digests(straight[1:])


def test_parts_are_made_smaller_where_any_device_runs_out_of_memory(monkeypatch):
    expected, real = digests(run(on_devices(1, cohort_chunk=2), FedMR())), Part.train

    def limited(self, *arguments):
        if len(self._part) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *arguments)

    monkeypatch.setattr(Part, "train", limited)
    found = run(on_devices(2), FedMR())  # parts of 3 and 2
    assert digests(found) == expected


@pytest.mark.parametrize("error", [KeyboardInterrupt, TrainingError])
def test_what_ends_one_device_ends_the_others_after_their_step(error, monkeypatch):
    begun, steps, real = threading.Barrier(2, timeout=30), [], Part._take

    def failing(self, window, loss, indices):
        first = threading.current_thread() not in steps
        steps.append(threading.current_thread())
        if first:
            begun.wait()
        if threading.current_thread().name.endswith("_0"):
            raise error("stop")
        real(self, window, loss, indices)

    monkeypatch.setattr(Part, "_take", failing)
    before = threading.active_count()
    with pytest.raises(error, match="stop"):
        run(on_devices(2, local_epochs=300), FedAvg(), 1)
    assert threading.active_count() == before
    assert len(steps) < 300


@pytest.mark.parametrize(("visible", "count"), [(1, 1), (3, 3)])
def test_every_visible_gpu_is_used(monkeypatch, visible, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    devices = visible_devices(torch.device("cuda"))
    assert len(devices) == count
    assert {device.index for device in devices} == ({None} if count == 1 else set(range(count)))
    assert visible_devices(CPU) == (CPU,)
