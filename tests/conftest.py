"""What several folders of tests share."""

from __future__ import annotations

import gc
import os

# The models of the tests are small: more threads would only wait for each other. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from hub_server import HubServer

#: How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub of this test's own, with alice (`hf_alice`, may write), and a client that knows nothing of this machine."""
    from hub_server import HubServer
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HF_ENDPOINT", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # `run --dry-run`, typed in this process, sets it
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))  # for xet, which reads it itself
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "hf" / "stored_tokens"))
    with HubServer() as server:
        server.add_user("hf_alice", "alice")
        yield server
        assert not server.crashes


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over all that was imported: it would look through it again and again."""
    gc.collect()
    gc.freeze()
