"""Threads are as many as the process may use cores, and those of a mean are bounded, as its memory is."""

from __future__ import annotations

import os

import pytest

from fedmr_merge.cores import usable_cores
from fedmr_merge.merging.options import MeanOptions


@pytest.mark.parametrize(("cores", "threads"), [(2, 2), (16, 16), (96, 16)])
def test_a_job_that_may_use_some_of_the_cores(cores: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    assert usable_cores() == cores
    assert MeanOptions().plan_work()[0] == threads
    assert MeanOptions().buffer_bytes < 350 * 10**6
    assert MeanOptions(threads=64).plan_work()[0] == 64


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1
