from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
import torch
from small_federation import Normalised, digest, make_federation
from small_tasks import make_task_federation
from torch import nn
from unlike_clients import run, unlike_federation

from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.models.base import Architecture, Classifier
from fedmr_merge.federated.training.engines.description import describe_devices, describe_operations

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "each of which trains 3 of the 5 clients of a round at a time: .* one GPU with training.cohort_chunk 3"),
        ({"cohort_chunk": 2}, "trains 2 of the 5 clients of a round at a time: the bytes are those of one GPU$"),
        ({"compile": True}, "with training.compile, clients train on one of the 2 GPUs"),
        ({"engine": "loop"}, "with training.engine loop, clients train on one of the 2 GPUs"),
    ],
)
def test_which_devices_train_what_is_reported(options, line):
    federation = replace(unlike_federation(**{"engine": "vmap", **options}), devices=(CPU, CPU))
    described = describe_devices(federation)
    assert described is not None
    assert re.search(line, described)
    assert describe_devices(replace(federation, devices=(CPU,))) is None


class _Unlike(Classifier):
    """Has operations that no rule is for, and draws at random."""

    def __init__(self):
        super().__init__()
        self.widen = nn.ConvTranspose2d(1, 2, 2)
        self.norm = nn.LayerNorm(50)
        self.fc = nn.Linear(50, 3)

    def features(self, images):
        return nn.functional.dropout(self.norm(self.widen(images).flatten(1)), training=self.training)

    def head(self, features):
        return self.fc(features)


@dataclass(frozen=True)
class Unlike(Architecture):
    def build(self, image_shape, num_classes):
        return _Unlike()


def test_the_operations_that_are_written_out_are_named_and_so_are_the_others():
    assert describe_operations(make_federation(Normalised(), engine="vmap")) == (
        "engine vmap: written out for all clients: batch_norm, conv2d, linear"
    )
    assert describe_operations(make_federation(Unlike(), engine="vmap")) == (
        "engine vmap: written out for all clients: linear; mapped by torch.func.vmap: conv_transpose2d, layer_norm"
    )
    line = describe_operations(make_task_federation("causal-lm", engine="vmap"))
    assert line is not None
    assert "linear" in line
    assert describe_operations(make_federation(engine="loop")) is None
    assert "torch.compile" in (describe_operations(make_federation(engine="vmap", compile=True)) or "")


def test_to_describe_a_run_changes_nothing():
    federation = make_federation(Unlike(), engine="vmap")
    before, state = digest(run(federation, FedAvg(), 1)[0].state), torch.get_rng_state()
    assert describe_operations(federation)
    assert torch.equal(torch.get_rng_state(), state)
    assert digest(run(federation, FedAvg(), 1)[0].state) == before
