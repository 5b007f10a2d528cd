from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from fedmr_merge.federated.training import freed_memory


@pytest.fixture(autouse=True)
def forgotten():
    freed_memory.keep_freed_memory.cache_clear()
    yield
    freed_memory.keep_freed_memory.cache_clear()


def test_glibc_is_asked_once(monkeypatch):
    asked = []

    class Library:
        @staticmethod
        def mallopt(option, value):
            asked.append((option, value))

    monkeypatch.setattr(ctypes, "CDLL", lambda _name: Library)
    freed_memory.keep_freed_memory()
    freed_memory.keep_freed_memory()
    assert [option for option, _ in asked] == [-3, -1, -8]
    assert all(0 < value < 2**31 for _, value in asked)


@pytest.mark.parametrize("error", [OSError, TypeError])
def test_other_systems_are_left_as_they_are(monkeypatch, error):
    def missing(_name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    freed_memory.keep_freed_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    freed_memory.keep_freed_memory.cache_clear()
    freed_memory.keep_freed_memory()


def test_a_server_has_large_pieces_returned(monkeypatch):
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace(mallopt=lambda *pair: asked.append(pair)))
    freed_memory.return_freed_memory()
    assert asked == [(-3, 1 << 20)]
