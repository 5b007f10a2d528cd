"""Bytes are counted from what is dispatched and comes back."""

from __future__ import annotations

import pytest
from small_federation import Normalised, make_federation

from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import begin_stage, forecast_traffic, run_rounds

CLIENTS, CLASSES = 3, 3


def size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def beside_the_models(federation, algorithm):
    """Return how many bytes a client gets, and sends back, beside a model: as the papers have it."""
    if algorithm.name == "scaffold":
        variate = size(dict(federation.module.named_parameters()).values())
        return variate, variate
    if algorithm.name == "fedgen":
        width = federation.module.fc.in_features
        inputs = algorithm.noise + CLASSES
        parameters = (inputs + 1) * algorithm.hidden + (algorithm.hidden + 1) * width
        return 4 * parameters + 8 * CLASSES, 8 * CLASSES
    return 0, 0


@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_every_method_is_counted(method):
    federation = make_federation(Normalised(), local_epochs=1)
    algorithm = ALGORITHMS.find(method)()
    state = begin_stage(federation, algorithm, initial_state(federation))
    model = size(federation.module.state_dict().values())
    down, up = beside_the_models(federation, algorithm)
    expected = (CLIENTS * (model + down), CLIENTS * (model + up))
    forecast = forecast_traffic(federation, algorithm, state)
    assert (forecast.down, forecast.up) == expected
    for result in run_rounds(federation, algorithm, state, first_round=1, rounds=2):
        assert (result.metrics["bytes_down"], result.metrics["bytes_up"]) == expected
