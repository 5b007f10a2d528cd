"""What a GPU would be asked to do, counted without one: all tensors are on it, and it is seldom waited for.

On the `meta` device tensors have no values, so that these tests are about devices, launches and synchronisations.
"""

from __future__ import annotations

import pytest
import torch
from operations import count_round, count_step, count_training, counting, make_federation
from small_tasks import make_task_federation

from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedgen import FedGen
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.catalogue import ALGORITHMS, ARCHITECTURES, TASKS
from fedmr_merge.federated.data.augmentation import Augmentation
from fedmr_merge.federated.evaluation import evaluate, recalibrate, recalibration_batches
from fedmr_merge.federated.protocol import State, initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.runs.host_copy import HostCopier

OF_IMAGES = [name for name in ARCHITECTURES.names() if ":" not in name and ARCHITECTURES.find(name).takes == "images"]
MODELS = [*OF_IMAGES, "torchvision:resnet18"]
SMALL = {"clients": 2, "batch": 2}


def run_one_round(federation, algorithm) -> State:
    """Run a round; raises where tensors of an operation lie on different devices."""
    with counting() as counts:
        state = algorithm.start(federation, initial_state(federation))
        (result,) = run_rounds(federation, algorithm, state, first_round=1, rounds=1)
    assert not counts.mixed
    assert counts.launches.total()
    return result.state


def assert_on_device(state: State, federation) -> None:
    families = (state.cohort.tensors, state.global_weights, state.tensors)
    # The number of Adam's steps is read by the host.
    elsewhere = {name for family in families for name, tensor in family.items() if tensor.device != federation.device}
    assert elsewhere <= {"adam/step"}


@pytest.mark.parametrize(
    "operation",
    [
        lambda meta, cpu: meta[cpu.long()],
        lambda meta, cpu: torch.index_select(meta, 0, cpu.long()),
        lambda meta, cpu: torch.conv1d(meta.view(1, 1, 3), cpu.view(1, 1, 3)),
        lambda meta, cpu: torch.bmm(meta.view(1, 1, 3), cpu.view(1, 3, 1)),
        lambda meta, cpu: meta.index_copy_(0, torch.arange(3), cpu),
    ],
)
def test_mixed_devices_are_found(operation):
    """Also by the operations that torch itself does not check on the `meta` device."""
    found = False
    with counting() as counts:
        try:
            operation(torch.empty(3, device="meta"), torch.ones(3))
        except RuntimeError:
            found = True
    assert found or counts.mixed


def test_what_waits_for_the_device_is_found():
    on_device = torch.empty(3, device="meta")
    for waits in (
        lambda: float(on_device.sum()),
        lambda: on_device.tolist(),
        lambda: on_device.cpu(),
        lambda: torch.tensor([1, 2], device="meta"),
        lambda: on_device[[0, 2]],
        lambda: torch.arange(3).to("meta"),
    ):
        with counting() as counts:
            waits()
        assert counts.synchronisations.total() == 1
    with counting() as counts:
        (on_device * 2).sum().add_(1)
    assert not counts.synchronisations.total()
    assert counts.launches == {"mul": 1, "sum": 1, "add_": 1}
    assert counts.moved_bytes == {"mul": 24, "sum": 16, "add_": 8}


@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_a_round_of_every_method_is_on_the_device(method):
    federation = make_federation("cnn", **SMALL, steps=2)
    algorithm = FedGen(generator_steps=2) if method == "fedgen" else ALGORITHMS.find(method)()
    state = run_one_round(federation, algorithm)
    assert_on_device(state, federation)
    # The second round dispatches what the first one kept, and a checkpoint copies it to the host.
    with counting() as counts:
        (result,) = run_rounds(federation, algorithm, state, first_round=2, rounds=1)
        copied = HostCopier().fill_buffer(result.state, page_locked=False)
    assert not counts.mixed
    assert_on_device(result.state, federation)
    assert {tensor.device.type for tensor in (*copied.cohort.tensors.values(), *copied.tensors.values())} == {"cpu"}


@pytest.mark.parametrize("model", MODELS)
def test_a_round_of_every_model_is_on_the_device(model):
    federation = make_federation(model, **SMALL)
    assert_on_device(run_one_round(federation, FedMR()), federation)


@pytest.mark.parametrize("task", TASKS.names())
def test_a_round_of_every_task_is_on_the_device(task):
    federation = make_task_federation(task, engine="vmap", device="meta")
    assert_on_device(run_one_round(federation, FedMR()), federation)


@pytest.mark.parametrize(
    "options",
    [
        {"engine": "loop"},
        {"optimizer": "adam"},
        {"cohort_chunk": 1},
        {"clip_norm": 1.0, "label_smoothing": 0.1, "class_weights": (1.0,) * 10},
        {"local_steps": 3, "local_epochs": 5},
        {"momentum": 0.0, "weight_decay": 0.1},
    ],
)
def test_a_round_with_other_options_is_on_the_device(options):
    """Without bfloat16: torch's autocast does not know the `meta` device."""
    run_one_round(make_federation("lenet", **SMALL, **options), FedAvg())


@pytest.mark.parametrize("selection", ["by_size", "round_robin", "by_loss"])
def test_every_selection_is_on_the_device(selection):
    run_one_round(make_federation("lenet", **SMALL), FedAvg(selection=selection))


def test_changed_images_recalibration_and_classes_are_on_the_device():
    federation = make_federation("resnet20", **SMALL)
    object.__setattr__(federation.data, "augmentation", Augmentation(flip=True, crop=2))
    weights = run_one_round(federation, FedAvg()).global_weights
    with counting() as counts:
        recalibrate(federation.module, weights, recalibration_batches(federation, 2))
        evaluate(federation, weights, in_detail=True)
    assert not counts.mixed


@pytest.mark.parametrize(
    ("model", "launches", "gigabytes"), [("lenet", 50, 0.2), ("resnet20", 170, 7.2), ("vgg16", 145, 17.5)]
)
def test_a_step_of_ten_clients_stays_below_its_ceilings(model, launches, gigabytes):
    step = count_step(model, FedAvg(), clients=10, batch=50)
    assert step.launches.total() <= launches
    assert step.moved_bytes.total() <= gigabytes * 1e9
    assert not step.synchronisations.total()


@pytest.mark.parametrize("model", ["cnn", "gpt", "lenet", "resnet20", "resnet20-preact", "text-classifier", "vgg16"])
def test_clients_together_move_hardly_more_bytes_than_one_by_one(model):
    """In a round of one step: with what the models of the cohort are copied for."""
    together, apart = (
        count_training(make_federation(model, clients=2, batch=50, engine=engine), FedAvg())
        for engine in ("vmap", "loop")
    )
    assert together.moved_bytes.total() <= 1.1 * apart.moved_bytes.total()


def test_a_step_with_every_option_of_the_loss_waits_for_nothing():
    options = {"clip_norm": 1.0, "label_smoothing": 0.1, "class_weights": (1.0,) * 10}
    assert not count_step("lenet", FedAvg(), **SMALL, **options).synchronisations.total()


def test_a_round_waits_for_the_device_a_few_times_whatever_the_model():
    found = {model: count_round(make_federation(model, **SMALL), FedMR()).synchronisations for model in MODELS[:3]}
    assert len({waits.total() for waits in found.values()}) == 1, found
    assert found[MODELS[0]].total() <= 9
    epochs = count_round(make_federation(MODELS[0], **SMALL, local_epochs=3), FedMR()).synchronisations.total()
    assert epochs == found[MODELS[0]].total()  # all indices are copied at once
