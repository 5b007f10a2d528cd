from __future__ import annotations

import os
import resource

import pytest
import torch

from fedmr_merge.recipe.prepare import make_deterministic, prepare, sensible_threads
from fedmr_merge.recipe.schema import parse_recipe

RECIPE = {
    "name": "large-batch",
    "data": {"name": "digits", "partition": {"kind": "iid", "clients": 100}},
    "model": {"name": "cnn"},
    "stages": [{"fedavg": {"rounds": 1}}],
}


def test_a_batch_larger_than_any_client_takes_no_more_memory() -> None:
    """With a million copies of an image, the first layer of the model would give 8 GB."""
    federation = prepare(parse_recipe(RECIPE | {"training": {"batch_size": 1_000_000}}, "x.yaml"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sensible_threads(federation) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_deterministic_gpu_does_not_fill_new_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.utils.deterministic.fill_uninitialized_memory
    try:
        make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before
