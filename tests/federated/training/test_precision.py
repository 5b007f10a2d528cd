"""Float32 products on a GPU are as exact as was asked for. The settings can be looked at without one."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from small_federation import Normalised, make_federation
from torch import Tensor

from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.evaluation import evaluate, recalibrate, recalibration_batches
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.selection import SELECTIONS
from fedmr_merge.federated.training.precision import (
    _settings,
    describe_slow_bf16,
    describe_unused_bf16,
    float32_products,
)


def current() -> list[str | bool]:
    return [getattr(owner, name) for owner, name, _ in _settings(tf32=False)]


def asked(*, tf32: bool) -> list[str | bool]:
    return [value for _, _, value in _settings(tf32=tf32)]


@pytest.fixture
def in_tf32() -> Iterator[None]:
    """A process that computes everything in TF32, as a user may have set it before a run."""
    with float32_products(tf32=True):
        yield


@pytest.mark.parametrize("tf32", [False, True])
def test_settings_hold_within_the_block_and_are_put_back(tf32):
    before = current()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with float32_products(tf32=tf32):
            assert current() == asked(tf32=tf32)
            with float32_products(tf32=not tf32):
                assert current() == asked(tf32=not tf32)
            assert current() == asked(tf32=tf32)
    assert current() == before


@pytest.mark.parametrize(
    ("content", "is_slow"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", False),
        ("processor\t: 0\nflags\t\t: fpu amx_bf16 amx_tile\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", True),
        ("nothing of that kind\n", False),
        (None, False),
    ],
)
def test_a_processor_without_bfloat16_is_found_where_the_system_lists_what_it_has(content, is_slow, tmp_path):
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    found = describe_slow_bf16(tmp_path / "cpuinfo")
    assert (found is not None) == is_slow
    if found:
        assert f"torch uses its {torch.backends.cpu.get_cpu_capability()}" in found


@pytest.mark.parametrize(
    ("content", "is_unused"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("nothing of that kind\n", False),
        (None, False),
    ],
)
def test_a_processor_with_bfloat16_is_found_only_where_the_system_says_so(content, is_unused, tmp_path):
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    found = describe_unused_bf16(tmp_path / "cpuinfo")
    assert (found is not None) == is_unused
    assert found is None or "training.precision bf16" in found


BEFORE_A_RUN = (
    "",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "torch.set_float32_matmul_precision('high')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="older torch has one interface only")
def test_whichever_interface_was_used_before_a_run():
    """In processes of their own: torch remembers what was set by either interface for good."""
    script = """
import os, sys, torch, torch._dynamo
from fedmr_merge.federated.training.precision import float32_products
torch.compile(lambda x: x + x, backend="eager")(torch.ones(2, 2))  # once for all
for setting in sys.argv[1:]:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, setting
        continue
    exec(setting)
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    for tf32 in (False, True):
        with float32_products(tf32=tf32):
            assert conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == ("tf32" if tf32 else "ieee")
            torch.compile(lambda x: x @ x, backend="eager")(torch.ones(2, 2))
    assert conv.fp32_precision == before
    os._exit(0)
"""
    command = [sys.executable, "-W", "error::UserWarning", "-c", script, *BEFORE_A_RUN]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_older_torch_has_only_the_booleans():
    old = SimpleNamespace(
        cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True)), cudnn=SimpleNamespace(allow_tf32=True)
    )
    settings = _settings(tf32=False, backends=old)
    assert settings == [(old.cuda.matmul, "allow_tf32", False), (old.cudnn, "allow_tf32", False)]


class Recording:
    """A forward that notes the settings it is called with."""

    def __init__(self, forward):
        self._forward, self.seen = forward, []

    def laid_out(self, images: Tensor) -> Tensor:
        return images

    def __call__(self, weights, images: Tensor) -> Tensor:
        self.seen.append(current())
        return self._forward(weights, images)


@pytest.mark.parametrize("in_detail", [False, True])
def test_evaluation_is_in_float32(in_tf32, in_detail):
    federation = make_federation()
    forward = Recording(federation.evaluation_forward)
    vars(federation)["evaluation_forward"] = forward
    evaluate(federation, federation.module.state_dict(), in_detail=in_detail)
    assert forward.seen
    assert all(seen == asked(tf32=False) for seen in forward.seen)


def test_recalibration_is_in_float32(in_tf32):
    federation, seen = make_federation(Normalised()), []
    torch.nn.modules.module.register_module_forward_pre_hook(hook := lambda module, inputs: seen.append(current()))
    try:
        recalibrate(federation.module, federation.module.state_dict(), recalibration_batches(federation, 2))
    finally:
        hooks = torch.nn.modules.module._global_forward_pre_hooks
        for key in [key for key, value in hooks.items() if value is hook]:
            del hooks[key]
    assert seen
    assert all(each == asked(tf32=False) for each in seen)


def test_a_round_is_in_float32_but_for_its_training(in_tf32, monkeypatch):
    """Selection and aggregation look at the settings; the clients' own are those of `training.precision`."""
    seen = {}

    class Looking(FedAvg):
        def select(self, federation, state, round):
            seen["select"] = current()
            return SELECTIONS["by_loss"](federation, state.global_weights, round)

        def objective(self, forward, weights, batch, context):
            seen["objective"] = current()
            return super().objective(forward, weights, batch, context)

        def aggregate(self, federation, state, trained, round):
            seen["aggregate"] = current()
            return super().aggregate(federation, state, trained, round)

    federation = make_federation(local_epochs=1)
    next(run_rounds(federation, Looking(), initial_state(federation), first_round=1, rounds=1))
    assert seen == dict.fromkeys(("select", "objective", "aggregate"), asked(tf32=False))
    # Not by `open_federation`, which refuses TF32 on a CPU.
    object.__setattr__(federation.training, "precision", "tf32")
    next(run_rounds(federation, Looking(), initial_state(federation), first_round=1, rounds=1))
    assert seen["objective"] == asked(tf32=True)
    assert seen["aggregate"] == asked(tf32=False)
