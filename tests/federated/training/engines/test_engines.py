"""What both engines keep to: one federation trained by either is the same to rounding, whatever the method."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from small_federation import digest, make_data, make_federation, restored
from torch import nn
from unlike_clients import assert_alike, run, unlike_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.algorithms.independent import Independent
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.data.augmentation import Augmentation
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.federation import Training, open_federation
from fedmr_merge.federated.models.base import Architecture, Classifier
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import begin_stage, run_rounds
from fedmr_merge.federated.training.batches import batch_sizes
from fedmr_merge.federated.training.engines import _step
from fedmr_merge.federated.training.engines._plan import plan_steps, processing_order
from fedmr_merge.federated.training.schedule import LrSchedule

ENGINES = pytest.mark.parametrize("engine", ["loop", "vmap"])


@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_engines_agree_on_every_method(method):
    algorithm = ALGORITHMS.find(method)()
    assert_alike(run(unlike_federation(engine="vmap"), algorithm), run(unlike_federation(engine="loop"), algorithm))


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.0},
        {"nesterov": True},
        {"weight_decay": 0.1},
        {"optimizer": "adam", "momentum": 0.0, "eps": 1e-3},
        {"optimizer": "adamw", "momentum": 0.0, "eps": 1e-3, "weight_decay": 0.1},
        {"clip_norm": 0.3},
        {"local_steps": 7, "local_epochs": 5},
        {"local_steps": 1, "local_epochs": 5},
        {"label_smoothing": 0.1, "class_weights": (1.0, 3.0, 0.5)},
        {"batch_size": 100},
        {"batch_size": 1},
    ],
)
def test_engines_agree_on_every_optimiser(options):
    expected = run(unlike_federation(engine="loop", **options), FedMR(), 1)
    assert_alike(run(unlike_federation(engine="vmap", **options), FedMR(), 1), expected)


TOGETHER = {
    "optimizer": "adamw",
    "momentum": 0.0,
    "eps": 1e-2,
    "lr_schedule": LrSchedule("exponential", factor=0.5),
    "clip_norm": 0.5,
    "local_steps": 4,
    "local_epochs": 5,
    "label_smoothing": 0.1,
    "class_weights": (1.0, 3.0, 0.5),
}
REFUSED = {"scaffold": ("optimizer", "clip_norm")}


@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_engines_agree_on_every_method_with_every_option(method):
    """And a run that is resumed after its first round gives the same bytes. What a method refuses is left out."""
    algorithm, refused = ALGORITHMS.find(method)(), REFUSED.get(method, ())
    for option in refused:
        with pytest.raises(TrainingError, match=f"^{method}'s"):
            run(unlike_federation(**{option: TOGETHER[option]} | {"momentum": 0.0}), algorithm)
    options = {option: value for option, value in TOGETHER.items() if option not in (*refused, *(refused and ("eps",)))}
    federation = unlike_federation(engine="loop", **options)
    first, second = run(federation, algorithm, 2)
    (resumed,) = run_rounds(federation, algorithm, restored(first.state), first_round=2, rounds=1)
    assert digest(resumed.state) == digest(second.state)
    assert_alike(run(unlike_federation(engine="vmap", **options), algorithm, 1), [first])


def test_so_many_local_steps_are_taken_together_where_batches_have_one_size():
    """5 steps of clients with 12, 7 and 3 examples in batches of 4."""
    sizes = [(4, 4, 4, 4, 4), (4, 3, 4, 3, 4), (3, 3, 3, 3, 3)]
    assert processing_order(sizes, 4) == (0, 1, 2)
    steps = plan_steps(sizes, 4)
    for client, wanted in enumerate(sizes):
        assert tuple(step.size for step in steps if step.start <= client < step.stop) == wanted
    assert (0, 2, 4) in [(step.start, step.stop, step.size) for step in steps]
    assert (1, 3, 3) in [(step.start, step.stop, step.size) for step in steps]


def test_engines_agree_on_changed_images():
    found = []
    for engine in ("vmap", "loop"):
        plain = unlike_federation(engine=engine)
        federation = replace(plain, data=replace(plain.data, augmentation=Augmentation(flip=True, crop=1)))
        found.append(run(federation, FedMR(), 1))
    assert_alike(*found)


def batches(*sizes):
    return [batch_sizes(size, 4, "keep") for size in sizes]


def test_no_client_takes_more_steps_than_its_examples_give():
    """10, 9 and 4 examples in batches of 4: together while they can, the remainders of 2 and 1 by themselves."""
    assert [(s.start, s.stop, s.size) for s in plan_steps(batches(10, 9, 4), 4)] == [
        (0, 3, 4),
        (0, 2, 4),
        (0, 1, 2),
        (1, 2, 1),
    ]
    assert [(s.start, s.stop, s.size) for s in plan_steps(batches(6, 6, 3), 4)] == [(0, 2, 4), (0, 2, 2), (2, 3, 3)]
    assert [(s.start, s.stop, s.size) for s in plan_steps(batches(2, 3), 4)] == [(0, 1, 2), (1, 2, 3)]
    assert processing_order(batches(3, 9, 2, 10, 8), 4) == (4, 1, 3, 2, 0)


def test_statistics_count_each_clients_own_batches():
    federation = unlike_federation(engine="vmap", local_epochs=2)
    (result,) = run(federation, ALGORITHMS.find("independent")(), 1)
    counted = result.state.cohort.tensors["norm.num_batches_tracked"].tolist()
    sizes = [federation.partition.sizes[client] for client in result.clients]
    assert counted == [2 * -(-size // 4) for size in sizes]


class OutOfMemory:
    """Stands in for a step that only has room for so many clients."""

    def __init__(self, monkeypatch, room):
        self.room, self.asked = room, []
        self.real = _step.LossOf.__call__
        monkeypatch.setattr(_step.LossOf, "__call__", lambda *arguments: self._loss_of(*arguments))

    def _loss_of(self, *arguments):
        loss = self.real(*arguments)

        def limited(weights, batch, context):
            clients = len(batch.targets) if batch.targets.dim() > 1 else 1
            self.asked.append(clients)
            if clients > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return loss(weights, batch, context)

        return limited


def test_a_cohort_that_does_not_fit_is_trained_in_parts(monkeypatch):
    expected = run(unlike_federation(engine="loop"), FedMR(), 2)
    memory = OutOfMemory(monkeypatch, room=2)
    found = run(unlike_federation(engine="vmap"), FedMR(), 2)
    assert_alike(found, expected)
    # All 5 do not fit, then 3 do not, then 2 do; the second round knows.
    assert len([clients for clients in memory.asked if clients > 2]) == 2


@ENGINES
def test_a_client_that_does_not_fit_alone_is_named(monkeypatch, engine):
    OutOfMemory(monkeypatch, room=0)
    with pytest.raises(TrainingError, match=r"out of memory while client \d trained") as caught:
        run(unlike_federation(engine=engine), FedMR(), 1)
    assert "batch_size" in caught.value.hint


@pytest.mark.parametrize(
    "wording",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
        "HIP out of memory. Tried to allocate 2.00 GiB",
        "HIP error: out of memory",
        "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
        "MIOpen Error: miopenStatusAllocFailed",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_every_wording_of_out_of_memory_is_recognised(wording):
    assert _step.is_out_of_memory(RuntimeError(wording))
    assert _step.is_out_of_memory(torch.OutOfMemoryError(wording))
    assert not _step.is_out_of_memory(ValueError(wording))


@pytest.mark.parametrize(
    "wording",
    ["CUDA error: an illegal memory access was encountered", "cuDNN error: CUDNN_STATUS_BAD_PARAM", "shared memory"],
)
def test_other_faults_of_a_gpu_are_not_out_of_memory(wording):
    assert not _step.is_out_of_memory(RuntimeError(wording))


def test_a_client_that_does_not_fit_alone_is_reported_in_torchs_words(monkeypatch):
    OutOfMemory(monkeypatch, room=0)
    with pytest.raises(TrainingError, match=r"in round 1: CUDA out of memory\. Tried to allocate 2\.00 GiB$"):
        run(unlike_federation(engine="vmap"), FedMR(), 1)


@ENGINES
def test_other_errors_are_not_taken_for_memory(monkeypatch, engine):
    def broken(maker, task, forward):
        raise RuntimeError("something else")

    monkeypatch.setattr(_step.LossOf, "__call__", broken)
    with pytest.raises(RuntimeError, match="something else"):
        run(unlike_federation(engine=engine), FedMR(), 1)


def test_cohort_chunk_trains_so_many_at_once(monkeypatch):
    memory = OutOfMemory(monkeypatch, room=9)
    found = run(unlike_federation(engine="vmap", cohort_chunk=2), FedMR(), 1)
    assert max(memory.asked) == 2
    assert_alike(found, run(unlike_federation(engine="loop"), FedMR(), 1))


@ENGINES
def test_bf16_rounds_products_and_keeps_weights(engine):
    exact = run(unlike_federation(engine=engine), FedAvg(), 1)[0]
    rounded = run(unlike_federation(engine=engine, precision="bf16"), FedAvg(), 1)[0]
    assert digest(exact.state) != digest(rounded.state)
    for name, tensor in rounded.state.global_weights.items():
        assert tensor.dtype == exact.state.global_weights[name].dtype
        torch.testing.assert_close(tensor, exact.state.global_weights[name], rtol=0.1, atol=0.02)


@ENGINES
def test_an_interrupt_leaves_the_state_of_the_round_before(monkeypatch, engine):
    federation = make_federation(engine=engine)
    state = FedMR().start(federation, initial_state(federation))
    straight = list(run_rounds(federation, FedMR(), state, first_round=1, rounds=2))
    rounds = run_rounds(federation, FedMR(), state, first_round=1, rounds=2)
    first = next(rounds)
    steps, real = [], torch._fused_sgd_

    def interrupted(*args, **options):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "_fused_sgd_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(rounds)
    assert digest(first.state) == digest(straight[0].state)
    (again,) = run_rounds(federation, FedMR(), first.state, first_round=2, rounds=1)
    assert digest(again.state) == digest(straight[1].state)


@pytest.mark.parametrize("engine", ["loop", pytest.param("vmap", marks=pytest.mark.slow)])
def test_compile_hands_the_local_step_to_torch_compile(monkeypatch, engine):
    """With a backend that compiles nothing: what it is asked to compile, and that it runs, is what is looked at."""
    graphs, real = [], torch.compile

    def compiled(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend=compiled, **options))
    federation = unlike_federation(engine=engine, compile=True, local_epochs=1)
    found = run(federation, FedAvg(), 2)
    # Once for all rounds: in `loop` for any number of examples, in `vmap` for each number of clients with a full batch.
    assert len(graphs) == {"loop": 2, "vmap": 4}[engine]
    assert_alike(found, run(unlike_federation(engine=engine, local_epochs=1), FedAvg(), 2))


class _Breaking(Classifier):
    """What it does in Python cannot be compiled with the rest."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 3)

    def features(self, images):
        torch._dynamo.graph_break()
        return images.flatten(1)

    def head(self, features):
        return self.fc(features)


@dataclass(frozen=True)
class Breaking(Architecture):
    def build(self, image_shape, num_classes):
        return _Breaking()


@ENGINES
def test_what_cannot_be_compiled_as_a_whole_is_not_run_as_it_was_written(engine):
    with pytest.raises(TrainingError, match=r"^training\.compile: torch\.compile failed: ") as caught:
        run(make_federation(Breaking(), engine=engine, compile=True), FedAvg(), 1)
    assert caught.value.hint == "set training.compile to false"


def test_what_cannot_be_compiled_is_told_in_one_line(monkeypatch):
    import torch._dynamo

    def failing(function, **_options):
        def call(*args):
            raise torch._dynamo.exc.TorchDynamoException("no C++ compiler\nlong story")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(TrainingError, match=r"^training\.compile: torch\.compile failed: no C\+\+ compiler$"):
        run(unlike_federation(compile=True), FedAvg(), 1)


@ENGINES
@pytest.mark.slow
def test_compiled_code_takes_the_same_steps(engine):
    found = run(unlike_federation(engine=engine, compile=True), FedAvg(), 2)
    assert_alike(found, run(unlike_federation(engine=engine), FedAvg(), 2))


def test_a_split_that_memory_asked_for_is_kept_by_whoever_goes_on(monkeypatch):
    federation = unlike_federation(engine="vmap")
    memory = OutOfMemory(monkeypatch, room=2)
    straight = run(federation, FedMR(), 3)
    memory.asked.clear()
    resumed = list(run_rounds(federation, FedMR(), straight[0].state, first_round=2, rounds=2))
    assert max(memory.asked) == 2
    assert digest(resumed[-1].state) == digest(straight[-1].state)
    assert begin_stage(federation, FedAvg(), straight[-1].state).facts == straight[-1].state.facts


class _OnePixel(Classifier):
    """Its batch normalisation sees one value per channel of an image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 4)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 3)

    def features(self, images):
        return self.norm(self.conv(images)).flatten(1)

    def head(self, features):
        return self.fc(features)


@dataclass(frozen=True)
class OnePixel(Architecture):
    def build(self, image_shape, num_classes):
        return _OnePixel()


def one_pixel_federation(sizes=(4, 9, 1), **training):
    """Batches of 4: the client of 9 examples has one left over, and one client holds no other."""
    partition = Partition.of(np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]))
    options = {"clients_per_round": len(sizes), "local_epochs": 2, "batch_size": 4} | training
    return open_federation(OnePixel(), make_data(), partition, Training(**options), seed=0)


@pytest.mark.parametrize("last_batch", ["merge", "drop"])
def test_engines_agree_on_last_batches_that_cannot_be_trained_on(last_batch):
    found, expected = (
        run(one_pixel_federation(last_batch=last_batch, engine=engine), Independent(), 1) for engine in ("vmap", "loop")
    )
    assert_alike(found, expected)
    (result,) = expected
    batches = result.state.cohort.tensors["norm.num_batches_tracked"].tolist()
    assert dict(zip(result.clients, batches, strict=True)) == {0: 2, 1: 4, 2: 0}
    assert not result.diverged


@ENGINES
def test_a_round_in_which_no_client_takes_a_step(engine):
    """Every client but one has a single example, and one client is selected in a round."""
    federation = one_pixel_federation((1, 1, 1, 1, 6), clients_per_round=1, engine=engine)
    results = run(federation, FedAvg(), 8)
    idle = [result for result in results if result.clients != (4,)]
    assert idle
    assert all("train_loss" not in result.metrics and not result.diverged for result in idle)
    before = [federation.module.state_dict(), *(result.state.global_weights for result in results)]
    for result in idle:
        for name, tensor in result.state.global_weights.items():
            assert torch.equal(tensor, before[result.round - 1][name])
