"""Five clients that have little in common, rounds of them, and whether two engines trained them alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_federation import Normalised, make_data

from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.federation import Training, open_federation
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds


def unlike_federation(**training):
    """Batches of 4: clients of 1 example, of less than a batch, of whole batches, and one that holds most of all."""
    sizes = np.cumsum([1, 3, 4, 8, 5])
    partition = Partition.of(np.split(np.random.default_rng(1).permutation(40), sizes))
    options = {"clients_per_round": 5, "local_epochs": 2, "batch_size": 4, "lr": 0.02, "momentum": 0.5} | training
    return open_federation(Normalised(), make_data(), partition, Training(**options), seed=0)


def run(federation, algorithm, rounds=2):
    state = algorithm.start(federation, initial_state(federation))
    return list(run_rounds(federation, algorithm, state, first_round=1, rounds=rounds))


def assert_alike(found, expected, rtol=1e-3, atol=1e-5):
    for one, other in zip(found, expected, strict=True):
        assert one.clients == other.clients
        families = ("cohort.tensors", "global_weights", "tensors")
        for family in families:
            pair = [
                result.state.cohort.tensors if "." in family else getattr(result.state, family)
                for result in (one, other)
            ]
            assert pair[0].keys() == pair[1].keys()
            for name in pair[1]:
                torch.testing.assert_close(pair[0][name], pair[1][name], rtol=rtol, atol=atol, msg=f"{family} {name}")
        for metric, value in other.metrics.items():
            assert one.metrics[metric] == pytest.approx(value, rel=1e-3), metric
