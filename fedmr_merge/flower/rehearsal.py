"""A SuperLink and a SuperNode for each client on 127.0.0.1, with TLS and registered keys, while a run lasts."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmr_merge.errors import RunError, listed
from fedmr_merge.flower.certificates import Certificates, make_certificates, make_node_key
from fedmr_merge.flower.commands import QUIET, flwr, registered_nodes, require_flower

CONNECTION = "rehearsal"
_HOST = "127.0.0.1"
_START_SECONDS = 120.0  # of the SuperLink; a slow machine imports Flower for many seconds
_START_SECONDS_A_NODE = 30.0
_LOOK_EVERY_SECONDS = 0.3
_LAST_LINES = 5
_SUPERLINK_BYTES, _NODE_BYTES = 300_000_000, 270_000_000  # a SuperNode with its executor, before any training


class Supervisor:
    """The process that starts all others and outlives none of them; see `supervisor.py`."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fedmr_merge.flower.supervisor", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal is for the parent
        )

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Start a process; returns its id."""
        request = {"start": list(command), "environment": dict(environment), "folder": str(Path.cwd()), "log": str(log)}
        return int(self._ask(request)["pid"])

    def exit_code(self, pid: int) -> int | None:
        """Return the exit code of a process, None while it runs."""
        code = self._ask({"of": pid})["code"]
        return None if code is None else int(code)

    def kill(self, pid: int, *, tree: bool = False) -> None:
        """Kill a process, with all that it started where `tree`."""
        self._ask({"of": pid, "kill": "tree" if tree else "one"})

    def close(self) -> None:
        """End everything, and wait until that is done."""
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin:
                self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError) as error:
            raise RunError("the process that supervises the rehearsal has died") from error
        return answer


@dataclass
class Rehearsal:
    """The processes of a rehearsal. Use as a context manager: nothing of it is left behind.

    Args:
        names: The registered names of the nodes, one for each client.
        configurations: What `--node-config` is given for nodes that need it, by name.
    """

    names: Sequence[str]
    configurations: Mapping[str, str] = field(default_factory=dict)
    folder: Path = field(init=False)  #: certificates, keys, database, logs, Flower's home
    superlink_pid: int = field(init=False, default=0)
    node_pids: dict[str, int] = field(init=False, default_factory=dict)
    supervisor: Supervisor = field(init=False)

    def __enter__(self) -> Rehearsal:
        require_flower()
        self.folder = Path(tempfile.mkdtemp(prefix="fedmr-merge-flower-"))
        self.supervisor = Supervisor(self.folder)
        try:
            self._before = os.environ.get("FLWR_HOME")
            os.environ["FLWR_HOME"] = str(self.folder / "home")
            self._certificates = make_certificates(self.folder)
            self._port, *ports = _free_ports(1 + len(self.names))
            self._node_ports = dict(zip(self.names, ports, strict=True))
            self._write_connection()
            self.start_superlink()
            self._keys = {name: make_node_key(self.folder, name) for name in self.names}
            for name, (_, public) in self._keys.items():
                flwr("supernode", "register", str(public), CONNECTION, "--name", name)
            for name in self.names:
                self.start_node(name)
            self._wait_for_nodes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.supervisor.close()
        os.environ.pop("FLWR_HOME", None)
        if self._before is not None:
            os.environ["FLWR_HOME"] = self._before

    @property
    def address(self) -> str:
        """The address of the SuperLink."""
        return f"{_HOST}:{self._port}"

    def start_superlink(self) -> None:
        """Start the SuperLink, which takes up the state of one that was killed, and wait until it answers."""
        files = self._certificates
        command = [
            *_program("flower-superlink"),
            *("--host", _HOST, "--port", str(self._port)),
            *_tls(files),
            *("--enable-supernode-auth", "--database", str(self.folder / "state.db")),
            "--disable-runtime-dependency-installation",
        ]
        self.superlink_pid = self.supervisor.start(command, self._environment(), self.folder / "superlink.log")
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(f"https://{self.address}/health", files.authority):
            self._require_alive(self.superlink_pid, "superlink")
            if time.monotonic() > deadline:
                raise RunError(
                    f"the SuperLink of the rehearsal did not answer within {_START_SECONDS:g} seconds",
                    hint="the machine may be overloaded; type the same command again",
                )
            time.sleep(_LOOK_EVERY_SECONDS)

    def start_node(self, name: str) -> None:
        """Start the SuperNode of a name."""
        files, port = self._certificates, self._node_ports[name]
        command = [
            *_program("flower-supernode"),
            *("--superlink", self.address, "--root-certificates", str(files.authority)),
            *("--auth-supernode-private-key", str(self._keys[name][0])),
            *("--host", _HOST, "--port", str(port)),
            *_tls(files),
            *(("--node-config", self.configurations[name]) if name in self.configurations else ()),
        ]
        self.node_pids[name] = self.supervisor.start(command, self._environment(), self.folder / f"{name}.log")

    def add_node(self, name: str, key: tuple[Path, Path]) -> None:
        """Start a SuperNode with a key that is not registered, to see it refused."""
        self._keys[name] = key
        [self._node_ports[name]] = _free_ports(1)
        self.start_node(name)

    def online(self) -> list[str]:
        """Return the names of the nodes that are online."""
        return [node.name for node in registered_nodes(CONNECTION) if node.status == "online"]

    def _wait_for_nodes(self) -> None:
        deadline = time.monotonic() + _START_SECONDS + _START_SECONDS_A_NODE * len(self.names)
        while missing := sorted(set(self.names) - set(self.online())):
            for name in missing:
                self._require_alive(self.node_pids[name], name)
            if time.monotonic() > deadline:
                raise RunError(
                    f"these nodes of the rehearsal are not online in time: {listed(missing, between=', ')}",
                    hint="the machine may be overloaded; set data.partition.clients to fewer",
                )
            time.sleep(_LOOK_EVERY_SECONDS)

    def _require_alive(self, pid: int, name: str) -> None:
        if self.supervisor.exit_code(pid) is None:
            return
        lines = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        last = " ".join(line.strip() for line in lines[-_LAST_LINES:])
        raise RunError(f"{name} of the rehearsal ended as soon as it was started: {last[-600:]}")

    def _environment(self) -> dict[str, str]:
        """Return the environment of the processes: the nodes ask for work often, as nobody else's network is used."""
        # Flower finds its other programs by name.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, **QUIET, "PATH": path, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}

    def _write_connection(self) -> None:
        home = self.folder / "home"
        home.mkdir()
        lines = [
            "[superlink]",
            f'default = "{CONNECTION}"',
            f"[superlink.{CONNECTION}]",
            f'address = "{self.address}"',
            f"root-certificates = {json.dumps(str(self._certificates.authority))}",
        ]
        (home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _tls(files: Certificates) -> tuple[str, ...]:
    return (
        *("--ssl-ca-certfile", str(files.authority)),
        *("--ssl-certfile", str(files.certificate), "--ssl-keyfile", str(files.key)),
    )


def _program(name: str) -> tuple[str, ...]:
    """Return the command of a program that was installed beside this interpreter."""
    return (str(Path(sys.executable).parent / name),)


def _free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((_HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _answers(address: str, authority: Path) -> bool:
    context = ssl.create_default_context(cafile=str(authority))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(address, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def require_memory(nodes: int) -> None:
    """Raise RunError when this machine has too little memory for so many nodes."""
    needed = _SUPERLINK_BYTES + nodes * _NODE_BYTES
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = 1024 * int(line.split()[1])
    except (OSError, ValueError):
        return  # it cannot be asked on this system
    if free < needed:
        raise RunError(
            f"a rehearsal with {nodes} nodes takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            hint="rehearse with fewer clients: --set data.partition.clients=3",
        )
