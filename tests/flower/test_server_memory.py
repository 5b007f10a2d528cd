"""The ServerApp of a run with K models holds less than K models and one tensor."""

from __future__ import annotations

import sys

import flower_server
import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is looked up in /proc")
def test_the_server_holds_less_than_k_models_and_one_tensor():
    """Four models and two tensors, whatever K is: see "Costs" in docs/flower.md."""
    found = flower_server.measure(6, 40_000_000)
    held, size = found["peak"] - found["before"], found["model_bytes"]
    assert size > 39_000_000
    assert held < 6 * size + flower_server.PIECE_BYTES
    assert held > 2 * size  # the global model and a reply: it was measured at all
