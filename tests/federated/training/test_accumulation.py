"""A step that accumulates the gradients of n batches is the step of one batch as large as all of them."""

from __future__ import annotations

import pytest
from small_federation import make_federation
from small_tasks import make_task_federation
from unlike_clients import assert_alike, run, unlike_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.training.batches import step_sizes
from fedmr_merge.federated.training.gpu_memory import client_bytes

ENGINES = pytest.mark.parametrize("engine", ["loop", "vmap"])


def test_steps_by_hand():
    assert step_sizes((4, 4, 4, 4, 1), 2) == (8, 8, 1)
    assert step_sizes((4, 4, 5), 2) == (8, 5)
    assert step_sizes((4, 3), 1) == (4, 3)
    assert step_sizes((), 3) == ()


@ENGINES
@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_accumulated_steps_are_those_of_the_larger_batch(method, engine):
    """Clients of 3 to 12 examples: full steps, last ones of two unlike batches, and clients without a full batch."""
    algorithm = ALGORITHMS.find(method)()
    options = {"engine": engine, "local_epochs": 1, "clients_per_round": 6, "last_batch": "keep"}
    accumulated = run(make_federation(batch_size=2, gradient_accumulation_steps=3, **options), algorithm, 1)
    assert_alike(accumulated, run(make_federation(batch_size=6, **options), algorithm, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"optimizer": "adam", "eps": 0.1}, {"clip_norm": 0.1}, {"local_steps": 3}])
def test_optimisers_count_and_clip_accumulated_steps(options):
    accumulated = run(make_federation(batch_size=2, gradient_accumulation_steps=2, **_epochs(options)), FedAvg(), 1)
    assert_alike(accumulated, run(make_federation(batch_size=4, **_epochs(options)), FedAvg(), 1), rtol=1e-3, atol=1e-5)


def _epochs(options):
    return options | ({"local_epochs": 5} if "local_steps" in options else {"local_epochs": 1})


@pytest.mark.parametrize("last_batch", ["merge", "drop"])
def test_a_last_batch_of_one_example_is_handled_within_a_step(last_batch):
    """With batch normalisation, whose statistics are those of each batch: both engines see the same ones."""
    options = {"batch_size": 2, "gradient_accumulation_steps": 3, "last_batch": last_batch}
    assert_alike(
        run(unlike_federation(engine="vmap", **options), FedAvg(), 1),
        run(unlike_federation(engine="loop", **options), FedAvg(), 1),
    )


def test_a_step_that_merges_an_example_merges_it_with_its_last_batch(monkeypatch):
    federation = make_federation(batch_size=2, gradient_accumulation_steps=2)
    assert federation.epoch_step_sizes(1) == (4, 3)
    assert federation.accumulated_sizes(3) == (2, 1)
    monkeypatch.setitem(federation.__dict__, "lone_clients", (1,))
    assert federation.epoch_step_sizes(1) == (4, 3)
    assert federation.accumulated_sizes(3) == (3,)
    monkeypatch.setitem(federation.__dict__, "lone_clients", (4,))
    assert federation.epoch_step_sizes(4) == (5,)
    assert federation.accumulated_sizes(5) == (2, 3)


def test_memory_is_that_of_one_batch():
    accumulated = make_federation(batch_size=2, gradient_accumulation_steps=4)
    assert client_bytes(accumulated) == client_bytes(make_federation(batch_size=2))
    assert client_bytes(accumulated) < client_bytes(make_federation(batch_size=8))


def test_weights_of_classes_are_refused():
    with pytest.raises(TrainingError, match=r"training\.class_weights make each batch a mean that is weighted"):
        make_federation(gradient_accumulation_steps=2, class_weights=(1.0, 2.0, 3.0))


@ENGINES
def test_a_batch_of_texts_counts_by_its_tokens(engine):
    """The mean over the tokens of two batches is not the mean of their means."""
    options = {"engine": engine, "local_epochs": 1}
    accumulated = make_task_federation("causal-lm", batch_size=2, gradient_accumulation_steps=2, **options)
    targets = accumulated.data.targets("train")
    assert len(set(accumulated.task.example_weights(targets).tolist())) > 1
    larger = make_task_federation("causal-lm", batch_size=4, **options)
    found, expected = run(accumulated, FedAvg(), 1), run(larger, FedAvg(), 1)
    found[0].metrics.pop("train_loss"), expected[0].metrics.pop("train_loss")
    assert_alike(found, expected, rtol=1e-4, atol=1e-5)
