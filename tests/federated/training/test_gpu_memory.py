"""The estimate of the memory that a client needs needs no GPU."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from small_federation import Normalised, make_federation
from torch import nn

from fedmr_merge.federated.models.base import Architecture, Classifier
from fedmr_merge.federated.training.gpu_memory import MemoryForecast, client_bytes, forecast_memory


class _OneLayer(Classifier):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 3)

    def features(self, images):
        return images.flatten(1)

    def head(self, features):
        return self.fc(features)


@dataclass(frozen=True)
class OneLayer(Architecture):
    def build(self, image_shape, num_classes):
        return _OneLayer()


MODEL = 4 * (16 * 3 + 3)  # bytes
EXAMPLE = 4 * 16 + 4 * 3 + 8  # its pixels, the log-probabilities of its classes, its label
TOTAL_WEIGHT = 4  # which the cross-entropy keeps


@pytest.mark.parametrize(
    ("options", "models", "batch"),
    [
        ({"batch_size": 4}, 5, 4),
        ({"batch_size": 4, "momentum": 0.0}, 4, 4),
        ({"batch_size": 4, "momentum": 0.0, "optimizer": "adam"}, 6, 4),
        ({"batch_size": 100}, 5, 12),  # the largest client has 12 examples
    ],
)
def test_a_client_by_hand(options, models, batch):
    federation = make_federation(OneLayer(), **options)
    assert client_bytes(federation) == models * MODEL + batch * EXAMPLE + TOTAL_WEIGHT


def test_statistics_are_not_touched():
    federation = make_federation(Normalised())
    before = {name: tensor.clone() for name, tensor in federation.module.state_dict().items()}
    assert client_bytes(federation) > 0
    assert all((tensor == before[name]).all() for name, tensor in federation.module.state_dict().items())


@pytest.mark.parametrize(("free", "fitting"), [(99, 0), (100, 1), (399, 3), (10_000, 7)])
def test_as_many_clients_fit_as_there_is_room_for(free, fitting):
    assert MemoryForecast(client_bytes=100, free_bytes=free, clients=7).fitting == fitting


def test_the_forecast_is_of_the_federations_round():
    federation = make_federation(OneLayer())
    found = forecast_memory(federation, 2 * client_bytes(federation) + 1)
    assert (found.clients, found.fitting) == (3, 2)
