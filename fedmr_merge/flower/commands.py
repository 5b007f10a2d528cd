"""Flower's own command line, called in this process: what it answers, as JSON."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fedmr_merge.errors import RunError, shown

#: Flower asks its makers for updates and reports its use; this program does neither.
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
_SIGNALS = 128  # exit codes beyond it are signals
_INTERRUPTED = 130


@dataclass(frozen=True)
class RunStatus:
    """What a SuperLink says of a run."""

    status: str  #: e.g. `running` or `finished:failed`
    details: str

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.status.startswith("finished")

    @property
    def is_completed(self) -> bool:
        """Whether the run has done all that it was to do."""
        return self.status == "finished:completed"


def require_flower() -> None:
    """Raise RunError when Flower is not installed."""
    try:
        importlib.import_module("flwr")
    except ImportError as error:
        raise RunError(f"Flower is not installed: {error}", hint="pip install 'fedmr-merge[flower]'") from error


def flwr(*arguments: str) -> dict[str, Any]:
    """Run a `flwr` command that answers with JSON, and return the answer.

    Raises RunError with what Flower reports when the command fails.
    """
    require_flower()
    os.environ.update(QUIET)
    app: Any = importlib.import_module("flwr.cli.app").app
    out, errors = io.StringIO(), io.StringIO()
    failure: BaseException | None = None
    code: Any = None
    with _streams(out, errors):
        try:
            code = app([*arguments, "--format", "json"], standalone_mode=False)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - typer's and click's, and whatever Flower lets through
            _raise_if_stopped(error)
            failure = error
    if code == _INTERRUPTED:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    answer = _last_object(out.getvalue())
    if answer.get("success") is True:
        return answer
    message = answer.get("error-message") or errors.getvalue().strip() or str(failure or out.getvalue().strip())
    lines = [line for line in str(message).splitlines() if line.strip()]
    raise RunError(
        f"flwr {' '.join(arguments[:2])}: {shown(' '.join(lines[-3:])) if lines else 'failed'}",
        hint="`fedmr-merge flower doctor NAME` looks for what is wrong with a connection",
    )


def _raise_if_stopped(error: BaseException) -> None:
    """Raise a SystemExit again that a signal caused (see `cli/train.py`): it is meant for this program."""
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > _SIGNALS:
        raise error


@contextlib.contextmanager
def _streams(out: io.StringIO, errors: io.StringIO) -> Iterator[None]:
    """Within the block, standard output and standard error are these: Flower writes JSON past any redirection."""
    before = (sys.stdout, sys.__stdout__, sys.stderr, sys.__stderr__)
    sys.stdout = sys.__stdout__ = out  # type: ignore[misc, assignment]
    sys.stderr = sys.__stderr__ = errors  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        sys.stdout, sys.__stdout__, sys.stderr, sys.__stderr__ = before  # type: ignore[misc]


def _last_object(text: str) -> dict[str, Any]:
    """Return the JSON object that ends an output; an empty one where there is none."""
    decoder = json.JSONDecoder()
    for start in (index for index, character in enumerate(text) if character == "{"):
        with contextlib.suppress(ValueError):
            found, end = decoder.raw_decode(text, start)
            if isinstance(found, dict) and not text[end:].strip():
                return found
    return {}


@dataclass(frozen=True)
class Node:
    """A node that is registered at a SuperLink, as `FoundNodes` reads one."""

    node_id: int
    name: str
    status: str  #: registered, online or offline


def registered_nodes(connection: str) -> list[Node]:
    """Return the nodes that are registered at a SuperLink; `flwr supernode ls` leaves out their names.

    Raises RunError when the SuperLink cannot be asked.
    """
    require_flower()
    os.environ.update(QUIET)
    utils: Any = importlib.import_module("flwr.cli.utils")
    configuration: Any = importlib.import_module("flwr.cli.flower_config")
    messages: Any = importlib.import_module("flwr.proto.control_pb2")
    errors = io.StringIO()
    try:
        with _streams(io.StringIO(), errors):
            client = utils.init_http_client_from_connection(configuration.read_superlink_connection(connection))
            try:
                with utils.flwr_cli_exc_handler():
                    found = client.ListNodes(messages.ListNodesRequest()).nodes_info
            finally:
                client.close()
    except (Exception, SystemExit) as error:
        _raise_if_stopped(error)
        reason = errors.getvalue().strip() or str(error)
        raise RunError(f"the SuperLink {shown(connection)!r} cannot be asked for its nodes: {shown(reason)}") from error
    return [Node(node.node_id, node.name, node.status) for node in found if node.status != "unregistered"]


def run_status(run: str, connection: str) -> RunStatus:
    """Return how a run stands. Raises RunError when the SuperLink does not know it."""
    runs = flwr("ls", connection, "--run-id", run).get("runs", [])
    if not runs:
        raise RunError(f"the SuperLink {shown(connection)!r} does not know the run {shown(run)}")
    return RunStatus(str(runs[0].get("status")), str(runs[0].get("status-details") or ""))


def log_lines(run: str, connection: str) -> Iterator[str]:
    """Yield the lines of a run's log until the run is over; the process that reads them is ended with the iterator."""
    command = [sys.executable, "-m", "fedmr_merge.flower.commands", "log", run, connection, "--stream"]
    process = subprocess.Popen(
        command,
        env={**os.environ, **QUIET, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield from process.stdout or ()
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    importlib.import_module("flwr.cli.app").app(sys.argv[1:])
