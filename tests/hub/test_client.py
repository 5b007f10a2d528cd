"""One client for a command: threads do not meet in it, the library is left as it was, and a bad connection is named."""

from __future__ import annotations

import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
from hub_models import QUICK, fetch, resolve_hub, weights
from hub_server import HubServer
from huggingface_hub import constants
from huggingface_hub.utils import _http as hf_http
from huggingface_hub.utils import are_progress_bars_disabled

from fedmr_merge.errors import HubError
from fedmr_merge.hub.client import open_hub
from fedmr_merge.hub.waiting import on_wait

REPO = "alice/digits"


def library() -> list[object]:
    """The state of huggingface_hub that a call could change."""
    names = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_SHARED_BLOBS", "HF_HUB_OFFLINE")
    levels = [logging.getLogger(name).level for name in ("huggingface_hub", "httpx2", "httpcore2")]
    session = (hf_http._GLOBAL_CLIENT_FACTORY, hf_http._GLOBAL_CLIENT)
    return [*(getattr(constants, name) for name in names), *levels, *session, are_progress_bars_disabled()]


@pytest.fixture
def other(hub: HubServer) -> Iterator[HubServer]:
    """A second Hub, with other bytes under the same name."""
    with HubServer() as second:
        for seed, server in enumerate((hub, second)):
            server.add_user("hf_alice", "alice")
            server.add_repo(REPO, {"model.safetensors": weights(seed, 40_000), "config.json": b"{}"})
        yield second
        assert not second.crashes


def test_threads_talk_to_their_own_endpoints_and_leave_the_library_alone(hub: HubServer, other: HubServer) -> None:
    huggingface_hub.get_session()  # a client that the rest of the program uses
    before, turns = library(), random.Random(0)
    for server in (hub, other):
        server.before = lambda _: time.sleep(turns.random() * 0.004)  # so that the threads take turns in many ways
    start = threading.Barrier(4)

    def work(number: int) -> list[bytes]:
        server, found = (hub, other)[number % 2], []
        start.wait()
        for turn in range(4):
            path = fetch(resolve_hub(REPO, endpoint=server.endpoint, token="hf_alice"), token="hf_alice")
            found.append((path / "model.safetensors").read_bytes())
            if turn == number % 4:
                with pytest.raises(HubError, match="there is no such repository"):
                    resolve_hub("alice/none", endpoint=server.endpoint)
        return found

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(work, range(4))):
            assert found == [weights(number % 2, 40_000)] * 4
    assert library() == before
    assert not huggingface_hub.get_session().is_closed, "whoever uses it is not cut off"


def test_calls_that_fail_leave_the_library_alone(hub: HubServer) -> None:
    before = library()
    with open_hub(endpoint=hub.endpoint, patience=QUICK) as client:
        with pytest.raises(KeyboardInterrupt):
            client.ask("x", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        assert library() == before
        with pytest.raises(HubError):
            client.ask("x", client.api.whoami)
        assert library() == before, "also while the Hub is open"


def test_a_command_uses_one_connection(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo(REPO, {"model.safetensors": weights(0)})
    with open_hub(endpoint=hub.endpoint, patience=QUICK) as client:
        first = client.client
        client.ask(REPO, lambda: client.api.model_info(REPO))
        assert client.client is first
    assert first.is_closed


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("socks5://127.0.0.1:9", "SOCKS proxy, and the package `socksio` is not installed"),
        ("foo://x", "Unknown scheme"),
    ],
)
def test_a_proxy_that_cannot_be_used(proxy: str, words: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(HubError, match=words) as caught:
        resolve_hub(REPO, endpoint=hub.endpoint)
    assert "ALL_PROXY" in str(caught.value.hint)


@pytest.mark.parametrize("pattern", ["/api/", "/resolve/"])
def test_a_login_page_of_a_network_is_named(pattern: str, hub: HubServer) -> None:
    hub.add_repo(REPO, {"model.safetensors": weights(0), "config.json": b"{}"})
    page, kind = b"<html>Welcome</html>", {"Content-Type": "text/html; charset=utf-8"}
    snapshot = resolve_hub(REPO, endpoint=hub.endpoint)
    hub.fail("GET|HEAD", pattern, "answer", status=200, body=page, headers=kind, times=9)
    with pytest.raises(HubError, match=r"127\.0\.0\.1 answered with a web page") as caught:
        fetch(snapshot) if pattern == "/resolve/" else resolve_hub(REPO, endpoint=hub.endpoint)
    assert "log in" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["alice/" + "x" * 100, "alice/a--b", "alice/a..b"])
def test_names_that_no_repository_has(name: str, hub: HubServer) -> None:
    with pytest.raises(HubError, match="not a name that a repository can have") as caught:
        resolve_hub(name, endpoint=hub.endpoint)
    assert len(str(caught.value)) < 120
    assert "96 characters at most" in str(caught.value.hint)
    assert "x" * 60 not in f"{caught.value} {caught.value.hint}"
    assert not hub.log


def test_a_name_in_another_case_is_the_name_that_the_hub_gives(hub: HubServer) -> None:
    hub.repos["Alice/Digits"] = hub.add_repo(REPO, {"model.safetensors": weights(0)})
    assert resolve_hub("Alice/Digits", endpoint=hub.endpoint).repo_id == REPO


def test_waiting_is_reported(hub: HubServer) -> None:
    hub.add_repo(REPO, {"model.safetensors": weights(0)})
    hub.fail("GET", "/api/models/", "answer", status=503, times=2)
    lines: list[str] = []
    token = on_wait.set(lines.append)
    try:
        resolve_hub(REPO, endpoint=hub.endpoint)
    finally:
        on_wait.reset(token)
    start = f"{hub.endpoint}: the server failed with status 503; trying again in "
    assert [line.removeprefix(start) for line in lines] == ["0.001 seconds (1 of 3)", "0.002 seconds (2 of 3)"]


def test_a_full_cache_is_named(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo(REPO, {"model.safetensors": weights(0)})

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "hf" / "x"))

    call: Callable[[], None] = full
    with open_hub(endpoint=hub.endpoint, patience=QUICK) as client, pytest.raises(HubError) as caught:
        client.ask(REPO, call)
    assert str(caught.value) == f"{REPO}: {tmp_path}/hf/x: No space left on device"
    assert "HF_HOME" in str(caught.value.hint)
