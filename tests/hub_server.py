"""A small Hub on 127.0.0.1, which the real client can push to and pull from, and which can fail.

    with HubServer() as hub:
        hub.add_user("hf_alice", "alice")
        hub.fail("POST", r"/commit/", "lost answer")
        push_to_hub(folder, "alice/digits", PushOptions(endpoint=hub.endpoint), token="hf_alice")

Paths are matched as they were sent (`refs%2Fpr%2F1`). Weights and pictures go by LFS to `localhost`, which is another
host than `127.0.0.1`: what must not be sent to a storage would show there.
"""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hub_routes import ROUTES, Blob, Commit, Refusal, Reply, Repo, Request, User, is_lfs

#: Where a connection can be cut.
PHASES = ("before", "half a request", "lost answer", "half an answer")


@dataclass
class Fault:
    """What goes wrong, and with which requests.

    `kind` is a phase of PHASES in which the connection is cut, "reset" in the middle of an answer, "hang", "wrong
    bytes", "answer" with a status and a body of the test's own, or "keep" the right one and add headers.
    """

    kind: str
    method: str
    pattern: str
    times: int
    skip: int
    status: int
    headers: Mapping[str, str]
    body: bytes


class HubServer:
    """The Hub. Its state is plain: tests look at it, and spoil it."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}  #: LFS content by sha256
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, bool]] = []  #: method, path, whether a token came with it
        self.page_items = 1000
        self.ranges = True
        self.storage_host = "localhost"  #: of LFS
        self.storage: str | None = None  #: address of the xet storage; without it there is no xet
        self.xet_hashes: dict[str, str] = {}  #: sha256 → xet hash
        self.before: Callable[[str], object] | None = None  #: called with the path of each request
        self.crashes: list[BaseException] = []  #: of the server itself
        self.stopping = threading.Event()
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads, self._http.block_on_close = True, False
        self._http.handle_error = self._note_crash  # type: ignore[method-assign]
        self.port = self._http.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def become_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be the Hub that huggingface_hub asks unless told otherwise, as importing it under HF_ENDPOINT would do."""
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", self.endpoint)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()

    def _note_crash(self, *_: object) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):  # a client that went away is none
            self.crashes.append(error)

    # What tests do with it

    def add_user(self, token: str, name: str, **options: Any) -> None:
        self.users[token] = User(name, **options)

    def add_repo(self, name: str, files: Mapping[str, bytes] | None = None, **options: Any) -> Repo:
        repo = self.repos[name] = Repo(name, **options)
        tree = {".gitattributes": Blob.regular(b"*.safetensors filter=lfs\n")}
        initial = repo.commit("refs/heads/main", "initial commit", tree, None)
        if files:
            repo.commit("refs/heads/main", "add files", tree | self.store(files), initial.oid)
        return repo

    def store(self, files: Mapping[str, bytes]) -> dict[str, Blob]:
        return {name: self.keep(content) if is_lfs(name) else Blob.regular(content) for name, content in files.items()}

    def keep(self, content: bytes) -> Blob:
        sha256 = hashlib.sha256(content).hexdigest()
        self.stored[sha256] = content
        return Blob.lfs(sha256, len(content))

    def content(self, repo: str, path: str, revision: str = "main") -> bytes:
        commit = self.repos[repo].resolve(revision)
        assert commit is not None, revision
        blob = commit.tree[path]
        return blob.content if blob.content is not None else self.stored[blob.sha256 or ""]

    def fail(
        self,
        method: str,
        pattern: str,
        kind: str,
        *,
        times: int = 1,
        skip: int = 0,
        status: int = 0,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Let `times` matching requests go wrong, after `skip` that go well."""
        self.faults.append(Fault(kind, method, pattern, times, skip, status, headers or {}, body))

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and method in fault.method.split("|") and re.search(fault.pattern, path):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def requests(self, method: str, pattern: str) -> list[str]:
        return [path for m, path, _ in self.log if m == method and re.search(pattern, path)]

    # Who may do what

    def reader(self, request: Request, name: str) -> Repo:
        repo, user = self.repos.get(name), request.user
        hidden = repo is None or (repo.private and not self._belongs(user, name))
        if repo is None or hidden:
            raise Refusal(401 if user is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def writer(self, request: Request, name: str, *, pull_request: bool = False) -> Repo:
        repo, user = self.reader(request, name), request.user
        if user is None or user.role == "read" or not (self._belongs(user, name) or pull_request):
            raise Refusal(403, "You don't have the required permissions")
        return repo

    def _belongs(self, user: User | None, name: str) -> bool:
        space = name.split("/")[0]
        return user is not None and (space == user.name or space in user.orgs)

    def committed(self, repo: Repo, revision: str) -> Commit:
        commit = repo.resolve(unquote(revision))
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    hub: HubServer

    def _serve(self) -> None:
        hub, length = self.hub, int(self.headers.get("Content-Length", 0))
        fault = hub.fault_of(self.command, self.path)
        kind = fault.kind if fault else ""
        if kind in ("before", "half a request"):
            self.rfile.read(length // 2 if kind == "half a request" else 0)
            self._cut()
            return
        body = self.rfile.read(length)
        if hub.before is not None:
            hub.before(self.path)
        hub.log.append((self.command, self.path, "Authorization" in self.headers))
        if kind == "hang":
            hub.stopping.wait(20)
            self._cut()
            return
        answer = Reply(fault.status, fault.body) if fault and kind == "answer" else self._answer(body)
        if kind == "lost answer":
            self._cut()
            return
        if kind == "wrong bytes":
            answer.body = bytes(len(answer.body))
        answer.headers |= fault.headers if fault else {}
        self._send(answer, len(answer.body) // 2 if kind in ("half an answer", "reset") else None)
        if kind == "reset":
            self.wfile.flush()
            self._cut()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _answer(self, body: bytes) -> Reply:
        address = urlsplit(self.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        headers = {key.lower(): value for key, value in self.headers.items()}
        user = self.hub.users.get(token)
        request = Request(self.command, address.path, parse_qs(address.query), headers, body, user)
        try:
            if token and user is None:
                raise Refusal(401, "Invalid credentials in Authorization header")
            for method, pattern, answer in ROUTES:
                if method == self.command and (match := pattern.fullmatch(address.path)):
                    with self.hub.lock:
                        return answer(self.hub, request, **match.groupdict())
            raise Refusal(404, f"no route for {self.command} {address.path}")
        except Refusal as refusal:
            return refusal.reply

    def _send(self, answer: Reply, stop_after: int | None) -> None:
        self.send_response(answer.status)
        for key, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:stop_after])
        if stop_after is not None:
            self.close_connection = True

    def _cut(self) -> None:
        self.close_connection = True
        # Lingering for no time makes the close a reset, also while the other side is still sending.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            self.rfile.close()

    def log_message(self, *_: object) -> None:
        return
