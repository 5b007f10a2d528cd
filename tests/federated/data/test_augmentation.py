from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_federation import make_data, make_partition

from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.data.augmentation import Augmentation, augmented
from fedmr_merge.federated.federation import Training, open_federation
from fedmr_merge.federated.models.cnn import Cnn
from fedmr_merge.federated.protocol import Context, initial_state
from fedmr_merge.federated.training.local_training import LocalTraining

IMAGES = torch.arange(1, 2 * 3 * 4 * 5 + 1, dtype=torch.uint8).view(2, 3, 4, 5)


def test_by_hand():
    image = torch.tensor([[[[1, 2, 3], [4, 5, 6]]]], dtype=torch.uint8)
    rows = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, -1], [0, 1, -1, 1]])
    assert augmented(image, rows)[:, 0].tolist() == [
        [[1, 2, 3], [4, 5, 6]],
        [[3, 2, 1], [6, 5, 4]],
        [[0, 0, 0], [1, 2, 3]],
        [[2, 3, 0], [5, 6, 0]],
        [[0, 6, 5], [0, 0, 0]],
    ]


@given(
    index=st.integers(0, 1),
    mirrored=st.integers(0, 1),
    down=st.integers(-5, 5),
    right=st.integers(-6, 6),
)
@settings(max_examples=60, deadline=None)
def test_is_a_flip_and_then_a_crop_of_the_padded_image(index, mirrored, down, right):
    image = IMAGES[index].flip(-1) if mirrored else IMAGES[index]
    padded = torch.nn.functional.pad(image, (6, 6, 5, 5))
    expected = padded[:, 5 - down : 9 - down, 6 - right : 11 - right]
    assert torch.equal(augmented(IMAGES, torch.tensor([index, mirrored, down, right])), expected)


def test_a_batch_of_batches_is_that_of_each():
    rows = torch.tensor([[[0, 1, 1, 2], [1, 0, 0, 0]], [[1, 1, -1, 0], [0, 0, 2, -2]], [[0, 0, 0, 1], [1, 1, 1, 1]]])
    whole = augmented(IMAGES, rows)
    assert whole.shape == (3, 2, 3, 4, 5)
    assert whole.dtype == torch.uint8
    assert all(torch.equal(whole[slot], augmented(IMAGES, rows[slot])) for slot in range(3))


def test_draws_what_is_asked_for():
    indices = torch.arange(2000)
    rows = Augmentation(flip=True, crop=2).draw(indices, np.random.default_rng(0))
    assert torch.equal(rows[:, 0], indices)
    assert abs(rows[:, 1].float().mean() - 0.5) < 0.05
    for column in (2, 3):
        assert torch.bincount(rows[:, column] + 2, minlength=5).min() > 300
    assert not Augmentation(crop=1).draw(indices, np.random.default_rng(0))[:, 1].any()
    assert not Augmentation(flip=True).draw(indices, np.random.default_rng(0))[:, 2:].any()
    assert Augmentation().draw(indices, np.random.default_rng(0)) is indices


@pytest.fixture
def federation():
    data = replace(make_data(shape=(1, 8, 8)), augmentation=Augmentation(flip=True, crop=1))
    training = Training(clients_per_round=3, local_epochs=2, batch_size=4, lr=0.05)
    return open_federation(Cnn(), data, make_partition(), training, seed=0)


def test_every_epoch_and_round_of_a_client_is_changed_anew_and_alike_for_every_engine(federation):
    algorithm = FedAvg()
    cohort = algorithm.start(federation, initial_state(federation)).cohort.expand(3)

    def steps(round, clients, slot):
        return LocalTraining(federation, algorithm, cohort, Context(), clients, round).schedule(slot)

    first = steps(1, (2, 0, 1), 0)
    assert [tuple(step.shape) for step in first] == [(4, 4)] * 6
    assert torch.equal(torch.cat(first), torch.cat(steps(1, (0, 1, 2), 2)))
    changes = {
        name: torch.cat(found)[:, 1:]
        for name, found in {"epoch 0": first[:3], "epoch 1": first[3:], "round 2": steps(2, (2, 0, 1), 0)[:3]}.items()
    }
    assert len({str(change.tolist()) for change in changes.values()}) == 3
    # The order of the examples is the one that it is without augmentation.
    plain = replace(federation, data=replace(federation.data, augmentation=Augmentation()))
    unchanged = LocalTraining(plain, algorithm, cohort, Context(), (2, 0, 1), 1).schedule(0)
    assert torch.equal(torch.cat(first)[:, 0], torch.cat(unchanged))


def test_a_batch_is_changed_then_normalised(federation):
    algorithm = FedAvg()
    cohort = algorithm.start(federation, initial_state(federation)).cohort.expand(3)
    rows = torch.tensor([[3, 1, 0, 1], [5, 0, -1, 0]])
    found = LocalTraining(federation, algorithm, cohort, Context(), (0, 1, 2), 1).batch(rows)
    assert torch.equal(found.inputs, federation.data.normalise(augmented(federation.data.train_images, rows)))
    assert torch.equal(found.targets, federation.data.train_labels[[3, 5]])
    assert found.indices.tolist() == [3, 5]
