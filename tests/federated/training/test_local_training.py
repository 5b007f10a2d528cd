from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from small_federation import Normalised, make_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.independent import Independent
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.protocol import Context
from fedmr_merge.federated.training.engines.loop import Loop
from fedmr_merge.federated.training.local_training import LocalTraining, train_cohort


def task_of(federation, clients=(5, 0, 2), seed=3):
    models = [federation.architecture.initialise((1, 4, 4), 3, seed + slot).state_dict() for slot in range(3)]
    return LocalTraining(federation, Independent(), Cohort.stack(models), Context(), clients, round=4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.0},
        {"weight_decay": 0.1},
        {"clip_norm": 0.3},
        {"label_smoothing": 0.2, "class_weights": (1.0, 3.0, 0.5)},
        {"local_steps": 5, "local_epochs": 5},
    ],
)
def test_loop_takes_the_steps_of_torch_sgd(options):
    federation = make_federation(Normalised(), **options)
    task = task_of(federation)
    trained, losses = Loop().train(task)
    for slot in range(3):
        module = deepcopy(federation.module).train()
        module.load_state_dict(task.cohort.slot(slot))
        training = federation.training
        optimiser = torch.optim.SGD(
            module.parameters(), lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
        )
        total = examples = 0
        for indices in task.schedule(slot):
            images, labels, _ = task.batch(indices)
            weights = training.class_weights and torch.tensor(training.class_weights)
            smoothing = training.label_smoothing
            loss = F.cross_entropy(module(images), labels, weight=weights, label_smoothing=smoothing)
            optimiser.zero_grad()
            # torch skips a parameter without a gradient, the engine takes its gradient to be zero.
            (loss + 0 * module.unused.sum()).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), training.clip_norm or 1e9)
            optimiser.step()
            total += loss.item() * len(labels)
            examples += len(labels)
        for name, expected in module.state_dict().items():
            torch.testing.assert_close(trained.slot(slot)[name], expected, rtol=1e-5, atol=1e-6, msg=name)
        assert losses[slot] == pytest.approx(total / examples, rel=1e-5)


def test_schedule_goes_through_every_example_in_every_epoch():
    federation = make_federation(local_epochs=3, batch_size=4)
    steps = task_of(federation, clients=(2, 1, 3)).schedule(0)
    assert [len(step) for step in steps] == [4, 4, 4] * 3
    epochs = torch.cat(steps).view(3, 12)
    own = federation.partition.clients[2].tolist()
    assert all(sorted(epoch.tolist()) == own for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_schedule_keeps_the_last_smaller_batch():
    task = task_of(make_federation(local_epochs=2, batch_size=4), clients=(1, 0, 3))
    assert [[len(step) for step in task.schedule(slot)] for slot in range(3)] == [[4, 3, 4, 3], [4, 4], [3, 3]]


def test_so_many_local_steps_begin_as_many_epochs_as_they_take():
    """Clients of 7, 4 and 12 examples in batches of 4."""
    federation = make_federation(local_steps=5, local_epochs=5, batch_size=4)
    task = task_of(federation, clients=(1, 0, 2))
    assert [task.step_sizes(slot) for slot in range(3)] == [(4, 3, 4, 3, 4), (4,) * 5, (4,) * 5]
    epochs = task_of(make_federation(local_epochs=3, batch_size=4), clients=(1, 0, 2)).schedule(0)
    assert all(map(torch.equal, task.schedule(0), epochs[:5]))
    assert train_cohort(Loop(), task).steps == (5, 5, 5)


def test_schedule_belongs_to_the_client_not_to_the_slot():
    federation = make_federation()
    first, second = task_of(federation, clients=(5, 0, 2)), task_of(federation, clients=(2, 5, 0))
    for one, other in zip(first.schedule(0), second.schedule(1), strict=True):
        assert torch.equal(one, other)


def test_a_model_trains_to_the_same_bytes_in_every_slot():
    federation = make_federation(Normalised())
    task = task_of(federation, clients=(5, 0, 2))
    moved = Cohort({name: tensor.roll(1, dims=0) for name, tensor in task.cohort.tensors.items()})
    other = LocalTraining(federation, task.algorithm, moved, Context(), (2, 5, 0), task.round)
    trained, again = Loop().train(task)[0], Loop().train(other)[0]
    for name, tensor in trained.tensors.items():
        assert torch.equal(tensor.roll(1, dims=0), again.tensors[name]), name


def test_trained_tells_what_each_client_did():
    trained = train_cohort(Loop(), task_of(make_federation(local_epochs=2, batch_size=4), clients=(1, 0, 3)))
    assert trained.clients == (1, 0, 3)
    assert trained.examples == (7, 4, 3)
    assert trained.steps == (4, 2, 2)


def test_a_client_that_diverges_is_named():
    task = task_of(make_federation(lr=1e30), clients=(4, 0, 2))
    with pytest.raises(TrainingError, match=r"client \d diverged in round 4") as caught:
        train_cohort(Loop(), task)
    assert "lr" in caught.value.hint


def test_only_the_client_at_fault_is_named():
    task = task_of(make_federation(), clients=(4, 0, 2))
    tensors = {name: tensor.clone() for name, tensor in task.cohort.tensors.items()}
    tensors["conv1.weight"][1] = torch.nan
    poisoned = LocalTraining(task.federation, task.algorithm, Cohort(tensors), Context(), task.clients, task.round)
    with pytest.raises(TrainingError, match="client 0 diverged in round 4: its training loss is nan"):
        train_cohort(Loop(), poisoned)
