"""Flower's command line, called in this process: a signal is meant for this program."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from fedmr_merge.flower.commands import flwr, registered_nodes


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT])
def number(request, tmp_path, monkeypatch) -> Iterator[int]:
    """A signal that this process gets as soon as somebody connects to the SuperLink `here`, which never answers."""

    def terminate(number, _frame):
        raise SystemExit(128 + number)

    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, terminate),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "config.toml").write_text(f'[superlink.here]\naddress = "{address}"\ninsecure = true\n')

        def send():
            server.accept()
            os.kill(os.getpid(), request.param)

        threading.Thread(target=send, daemon=True).start()
        yield request.param
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("ask", [lambda: flwr("ls", "here"), lambda: registered_nodes("here")])
def test_a_signal_is_not_taken_for_a_failure_of_flower(number, ask):
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as stopped:
        ask()
    if number == signal.SIGTERM:
        assert stopped.value.code == 143
