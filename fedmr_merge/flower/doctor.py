"""Look for what would fail between this machine and a SuperLink, before it fails."""

from __future__ import annotations

import email.utils
import http.client
import importlib
import importlib.metadata
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedmr_merge.errors import FedmrMergeError, shown
from fedmr_merge.flower.commands import registered_nodes
from fedmr_merge.paths import home_expanded

_TESTED = (1, 42)  #: the version of Flower that this package is made for
_SECONDS = 10.0
_LARGEST_SKEW_SECONDS = 5.0
_LEAST_DAYS = 14


@dataclass(frozen=True)
class Check:
    """Something that was looked at."""

    subject: str
    is_fine: bool
    finding: str


@dataclass(frozen=True)
class Connection:
    """A connection of Flower's own configuration."""

    name: str
    host: str
    port: int
    authority: str | None  #: the file that the SuperLink's certificate is checked against; None: the system's
    is_insecure: bool


def examine(name: str) -> list[Check]:
    """Look at a connection, step by step; what a failed step makes impossible is not looked at."""
    checks = [_version()]
    try:
        connection = read_connection(name)
    except FedmrMergeError as error:
        return [*checks, Check("connection", False, str(error))]
    kind = "without TLS: anybody on the way reads and changes everything" if connection.is_insecure else "with TLS"
    checks.append(Check("connection", True, f"{connection.host}:{connection.port}, {kind}"))
    steps: list[Callable[[Connection], list[Check]]] = [_reach, *([] if connection.is_insecure else [_certificate])]
    for step in (*steps, _clock, _nodes):
        found = step(connection)
        checks += found
        if not all(check.is_fine for check in found):
            break
    return checks


def read_connection(name: str) -> Connection:
    """Return a connection of Flower's configuration. Raises FedmrMergeError when there is none of this name."""
    configuration: Any = importlib.import_module("flwr.cli.flower_config")
    try:
        found = configuration.read_superlink_connection(name)
    except (Exception, SystemExit) as error:
        raise FedmrMergeError(
            f"Flower's configuration has no usable connection {shown(name)!r}: {shown(error)}",
            hint="`flwr config list` shows those that there are, and where the configuration is",
        ) from error
    host, _, port = str(found.address or "").rpartition(":")
    if not host or not port.isdigit():
        raise FedmrMergeError(f"the connection {shown(name)!r} has no address HOST:PORT: {shown(found.address)!r}")
    authority = found.root_certificates and str(home_expanded(found.root_certificates))
    return Connection(name, host, int(port), authority, bool(found.insecure))


def _version() -> Check:
    found = importlib.metadata.version("flwr")
    fine = tuple(int(part) for part in found.split(".")[:2]) == _TESTED
    return Check("flwr", fine, found if fine else f"{found}, and this package is made for 1.42")


def _reach(connection: Connection) -> list[Check]:
    begun = time.monotonic()
    try:
        with socket.create_connection((connection.host, connection.port), timeout=_SECONDS):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        return [Check("reachable", False, f"{reason}: is the SuperLink running, and does its firewall let port "
                      f"{connection.port} through?")]  # fmt: skip
    return [Check("reachable", True, f"in {1000 * (time.monotonic() - begun):.0f} ms")]


def _context(connection: Connection) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=connection.authority)


def _certificate(connection: Connection) -> list[Check]:
    try:
        with (
            socket.create_connection((connection.host, connection.port), timeout=_SECONDS) as plain,
            _context(connection).wrap_socket(plain, server_hostname=connection.host) as secured,
        ):
            certificate = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return [Check("certificate", False, f"{error.verify_message}; it is checked against {connection.authority}")]
    except OSError as error:
        return [Check("certificate", False, f"{error.strerror or error}: does the SuperLink speak TLS?")]
    days = int((ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) // 86_400)
    if days < _LEAST_DAYS:
        return [Check("certificate", True, f"expires in {days} days: make a new one soon")]
    return [Check("certificate", True, f"valid for {days} days")]


def _clock(connection: Connection) -> list[Check]:
    """Compare the clocks: a message carries the time of its making, and expires by the clock of the SuperLink."""
    made: http.client.HTTPConnection
    if connection.is_insecure:
        made = http.client.HTTPConnection(connection.host, connection.port, timeout=_SECONDS)
    else:
        made = http.client.HTTPSConnection(
            connection.host, connection.port, timeout=_SECONDS, context=_context(connection)
        )
    try:
        made.request("GET", "/health")
        answer = made.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as error:
        return [Check("health", False, f"/health does not answer: {error}")]
    finally:
        made.close()
    if answer.status != http.client.OK:
        return [Check("health", False, f"/health answers with status {answer.status}: is it a SuperLink?")]
    date = answer.getheader("Date")
    if date is None:
        return [Check("clock", True, "not compared: the SuperLink does not say its time")]
    skew = time.time() - email.utils.parsedate_to_datetime(date).timestamp()
    fine = abs(skew) <= _LARGEST_SKEW_SECONDS
    finding = f"{abs(skew):.0f} seconds {'after' if skew > 0 else 'before'} that of the SuperLink"
    return [Check("clock", fine, finding if fine else f"{finding}: messages would expire too early; use NTP on both")]


def _nodes(connection: Connection) -> list[Check]:
    try:
        nodes = registered_nodes(connection.name)
    except FedmrMergeError as error:
        return [Check("nodes", False, str(error))]
    online = [node for node in nodes if node.status == "online"]
    if nameless := [node for node in nodes if not node.name]:
        return [
            Check(
                "nodes",
                False,
                f"{len(nameless)} of {len(nodes)} have no name: start the SuperLink with --enable-supernode-auth, and "
                "register each node with --name",
            )
        ]
    return [Check("nodes", bool(online), f"{len(online)} of {len(nodes)} are online")]
