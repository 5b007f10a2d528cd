"""The HTTP client under every call to the Hub: time limits, what a hostile endpoint could answer, bytes counted.

A failure that may pass becomes `Passing`, which the retries inside huggingface_hub do not catch: those print signed
addresses, and some calls have none. `Hub.ask` tries again.

Importing this module imports huggingface_hub.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]
from huggingface_hub.utils._http import hf_request_event_hook

from fedmr_merge.checkpoint.writer import Progress
from fedmr_merge.errors import HubError
from fedmr_merge.hub.errors import Passing, passing

CONFLICT_STATUS = {409, 412}
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_ETAG = re.compile(r'(W/)?"?([0-9a-f]{40}|[0-9a-f]{64})"?')
_BUSY = "another conflicting operation is in progress"


@dataclass(frozen=True)
class Patience:
    """How long to wait for the Hub, and how often to try again."""

    timeout_seconds: float = 60.0  #: to connect, and between two pieces of data
    retries: int = 5
    first_contact_retries: int = 2  #: while no server has answered at all: it is more likely absent than busy
    first_wait_seconds: float = 1.0  #: before the first retry; doubles with each
    longest_wait_seconds: float = 60.0  #: a server that asks for more than this is not waited for


class Traffic:
    """The bytes that pass while a Hub is open: reports each once, and bounds what an endpoint may send.

    What is sent again after a failure is not reported again.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.largest_answer: int | None = None  #: bytes; while a file of a known size is fetched
        self._progress = progress
        self._left = 0
        self._lock = threading.Lock()  # the client sends several files at once

    @contextlib.contextmanager
    def at_most(self, nbytes: int) -> Iterator[None]:
        """Refuse answers of more bytes than this, for the length of a block."""
        self.largest_answer = nbytes
        try:
            yield
        finally:
            self.largest_answer = None

    def expect(self, total: int) -> None:
        """Set how many bytes will pass; before that, none are reported."""
        self._left = total

    def add(self, count: int) -> None:
        """Count bytes that have just passed."""
        with self._lock:
            count = min(count, self._left)
            self._left -= count
            if self._progress is not None and count > 0:
                self._progress(count)

    def finish(self) -> None:
        """Report the rest: bytes that were there already, or that went another way."""
        self.add(self._left)


class Client(httpx2.Client):
    """The HTTP client of one command, for requests of our own and of huggingface_hub."""

    reached: ClassVar[set[str]] = set()  #: addresses of the endpoints that have answered this process

    def __init__(self, endpoint: str, patience: Patience, traffic: Traffic) -> None:
        # huggingface_hub's own hook keeps offline mode, and lets the Hub count downloads.
        hooks = {"request": [hf_request_event_hook, self._guard]}
        try:
            super().__init__(event_hooks=hooks, follow_redirects=True, verify=_tls())
        except ImportError as error:  # of a SOCKS proxy
            raise HubError(
                "ALL_PROXY names a SOCKS proxy, and the package `socksio` is not installed",
                hint="install it, `pip install socksio`, or unset ALL_PROXY",
            ) from error
        except ValueError as error:
            raise HubError(
                f"the proxy settings cannot be used: {error}",
                hint="correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or unset it",
            ) from error
        self._home = urlsplit(endpoint)
        self._limits = httpx2.Timeout(patience.timeout_seconds).as_dict()
        self._cuts_at_most = self._cuts_left = patience.retries
        self._traffic = traffic

    def start(self) -> None:
        """Begin a new call: downloads that are cut during it may be resumed as often as patience allows."""
        self._cuts_left = self._cuts_at_most

    def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Send a request within the time limits, whatever limits the caller gave.

        Raises Passing for what may succeed later, HubError for an answer that is refused.
        """
        request.extensions = {**request.extensions, "timeout": self._limits}
        if request.method == "PUT":
            request.stream = _Sent(request.stream, self._traffic)
        try:
            response = super().send(request, stream=stream, **options)
            self.reached.add(self._home.netloc)
            self._check(request, response)
        except httpx2.TransportError as error:
            raise passing(error) from None
        if stream:
            response.stream = _Received(response.stream, self._traffic, self._cut)
        return response

    def _guard(self, request: httpx2.Request) -> None:
        """Check an address before each request, redirects included."""
        address = urlsplit(str(request.url))
        if address.scheme != "https" and not is_loopback(address.hostname):
            raise HubError(
                f"the endpoint leads to plain http at {address.hostname}, which is refused",
                hint="if that is a network's login page, log in with a browser and try again",
            )
        # A page link, an upload's address or a redirect can name any host: only the endpoint itself gets the token.
        if (address.scheme, address.netloc) != (self._home.scheme, self._home.netloc):
            request.headers.pop("authorization", None)

    def _check(self, request: httpx2.Request, response: httpx2.Response) -> None:
        status = response.status_code
        if status == 200 and response.headers.get("Content-Type", "").startswith("text/html"):
            host = request.url.host
            raise HubError(
                f"{host} answered with a web page instead of data: a network's login page, or a wrong endpoint",
                hint="open a web page in a browser, log in to the network if it asks for that, and try again",
            )
        if status in _PASSING_STATUS or status in CONFLICT_STATUS:
            response.read()
            if status in _PASSING_STATUS or _BUSY in response.text:
                reason = "the rate limit is reached" if status == 429 else f"the server failed with status {status}"
                raise Passing(reason, wait_seconds=_retry_after(response))
        etag = response.headers.get("X-Linked-Etag") or response.headers.get("ETag")
        if request.method == "HEAD" and etag is not None and not _ETAG.fullmatch(etag):
            # It names a file of the cache: anything but a hash could lead out of it.
            file = request.url.path.rsplit("/resolve/", 1)[-1].partition("/")[2]
            raise HubError(f"{file}: the endpoint gave a malformed ETag, {etag[:80]!r}")
        storage = urlsplit(response.headers.get("X-Xet-Cas-Url", "https:"))
        # A storage on this machine can only be meant by an endpoint on this machine.
        near = storage.scheme == "local" or (storage.scheme == "http" and is_loopback(storage.hostname))
        if storage.scheme != "https" and not (near and is_loopback(self._home.hostname)):
            raise HubError(f"the endpoint names a storage that is refused, {storage.scheme}://{storage.netloc}")

    def _cut(self, error: httpx2.TransportError) -> None:
        """Count a download that was cut: huggingface_hub resumes it, but only as often as patience allows."""
        self._cuts_left -= 1
        if self._cuts_left < 0:
            raise passing(error) from None


class _Sent(httpx2.SyncByteStream):
    """The body of a request, counted while it passes."""

    def __init__(self, inner: Any, traffic: Traffic) -> None:
        self._inner = inner
        self._traffic = traffic

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._inner:
            yield piece
            self._traffic.add(len(piece))


class _Received(httpx2.SyncByteStream):
    """The body of an answer, counted while it passes."""

    def __init__(self, inner: Any, traffic: Traffic, cut: Callable[[httpx2.TransportError], None]) -> None:
        self._inner = inner
        self._traffic = traffic
        self._on_cut = cut

    def __iter__(self) -> Iterator[bytes]:
        length, limit = 0, self._traffic.largest_answer
        try:
            for piece in self._inner:
                length += len(piece)
                if limit is not None and length > limit:
                    raise HubError(f"the endpoint sends more than the {limit} bytes that it lists")
                yield piece
                self._traffic.add(len(piece))
        except httpx2.TransportError as error:
            self._on_cut(error)
            raise

    def close(self) -> None:
        self._inner.close()


def is_loopback(host: str | None) -> bool:
    """Return whether a host name or address is this machine itself."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host or "").is_loopback
    return host == "localhost"


def _retry_after(response: httpx2.Response) -> float:
    """Return how long the server asks to wait, in seconds; 0 where it does not say."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = response.headers.get("Retry-After", "").strip()
    return float(value) if re.fullmatch(r"\d{1,9}", value) else 0.0


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context()  # takes longer than a request
