"""A Hub to talk to: one endpoint, one token and one HTTP client for a command, the same patience with every call.

Importing this module imports huggingface_hub: import it inside the function that needs the Hub.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

import httpx2
import huggingface_hub as hf
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]
from huggingface_hub.utils._runtime import is_xet_available

from fedmr_merge import __version__
from fedmr_merge.checkpoint.writer import Progress
from fedmr_merge.errors import HubError
from fedmr_merge.hub.errors import Passing, explain, root_cause
from fedmr_merge.hub.http import CONFLICT_STATUS, Client, Patience, Traffic, is_loopback
from fedmr_merge.hub.library import talking_through
from fedmr_merge.hub.waiting import on_wait

T = TypeVar("T")

#: What the client raises when a call fails, or when it cannot make sense of an answer.
_FAILURES = (Passing, httpx2.HTTPError, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)


class Hub:
    """A Hub that is open: pass it to everything that one command asks of it. `api` is huggingface_hub's."""

    def __init__(self, endpoint: str, token: str | None, patience: Patience, traffic: Traffic) -> None:
        self.endpoint = endpoint
        self.token = token
        self.patience = patience
        self.traffic = traffic
        self.api = hf.HfApi(endpoint, token or False, library_name="fedmr-merge", library_version=__version__)
        self._client: Client | None = None
        self._has_xet: bool | None = None  #: None until the endpoint was asked

    @property
    def client(self) -> Client:
        """The HTTP client, made when it is first needed. Raises HubError where the proxy settings cannot be used."""
        if self._client is None or self._client.is_closed:
            self._client = Client(self.endpoint, self.patience, self.traffic)
        return self._client

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def ask(self, subject: str, call: Callable[[], T], *, landed: Callable[[], T | None] | None = None) -> T:
        """Make a call of huggingface_hub's, and make it again while the failure may pass.

        `landed` is for a call that must not take effect twice: it is called after each failure that may have come after
        the effect, and what it finds, if anything, is the answer.

        Raises UnreachedError when no try was answered, HubError with what to do for everything else.
        """

        def through_library() -> T:
            settings = {} if self._has_xet is None else {"HF_HUB_DISABLE_XET": not self._has_xet}
            with talking_through(lambda: self.client, settings):
                return call()

        return self.retry(subject, through_library, landed)

    def retry(self, subject: str, call: Callable[[], T], landed: Callable[[], T | None] | None = None) -> T:
        """Make a call of `client`'s own, and make it again, as `ask` does for huggingface_hub's."""
        attempt = 0
        while True:
            try:
                if self._client is not None:
                    self._client.start()
                return call()
            except _FAILURES as error:
                cause = root_cause(error)
            if isinstance(cause, HubError):  # a refusal of ours that the client wrapped
                raise cause
            if landed is not None and _may_have_landed(cause) and (found := landed()) is not None:
                return found
            if not isinstance(cause, Passing) or not self._wait(attempt, cause):
                raise explain(cause, subject, self.endpoint, self.token) from None
            attempt += 1

    def download(self, repo_id: str, commit: str, file: str, *, anew: bool = False) -> str:
        """Fetch one file into the cache and return its local path. For `ask`: it tries once.

        What is in the cache is not fetched, unless `anew` is set: then not even bytes that other repositories share
        are used.
        """
        return self.api.hf_hub_download(repo_id, file, revision=commit, cache_dir=self.cache, force_download=anew)

    def choose_transfer(self, repo_id: str, revision: str | None, *, create_pr: bool) -> None:
        """Leave xet off from here on where the endpoint has none: huggingface_hub itself does not fall back."""
        if not is_xet_available():
            return
        branch = "None?create_pr=1" if create_pr else quote(revision or "main", safe="")
        url = f"{self.endpoint}/api/models/{repo_id}/xet-write-token/{branch}"

        def call() -> bool:
            response = self.client.get(url, headers=self.headers)
            if response.status_code != 404:
                hf_raise_for_status(response)
            return response.status_code != 404

        self._has_xet = self.retry(repo_id, call)

    def read_range(self, repo_id: str, commit: str, file: str, start: int, end: int, size: int) -> bytes:
        """Return bytes `start` to `end` of a file of `size` bytes, also from an endpoint that does not support ranges.

        Raises HubError when the endpoint's size is another, or as `ask` does.
        """
        subject = f"{repo_id}@{commit}: {file}"
        url = hf.hf_hub_url(repo_id, file, revision=commit, endpoint=self.endpoint)
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}

        def call() -> bytes:
            with self.client.stream("GET", url, headers={**self.headers, **headers}) as response:
                hf_raise_for_status(response)
                whole = response.status_code != 206
                total = response.headers.get("Content-Length" if whole else "Content-Range", "").rpartition("/")[2]
                if total != str(size):
                    raise HubError(
                        f"{subject}: the endpoint lists {size} bytes and sends {total[:20] or 'an unknown size'}",
                        hint="do not use this endpoint's files",
                    )
                skip = start if whole else 0
                body = bytearray()
                for piece in response.iter_raw():
                    body += piece
                    if len(body) >= skip + end - start:
                        return bytes(body[skip : skip + end - start])
                raise Passing("the connection was cut")

        return self.retry(subject, call)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request of `client`: the token, and the name of this package."""
        return build_hf_headers(token=self.token or False, library_name="fedmr-merge", library_version=__version__)

    @property
    def offline(self) -> bool:
        """Whether HF_HUB_OFFLINE forbids any request."""
        return constants.is_offline_mode()

    @property
    def cache(self) -> Path:
        """The folder of the cache. It keeps files by name alone, so each further endpoint has a folder of its own."""
        if self.endpoint == constants.ENDPOINT:
            return Path(constants.HF_HUB_CACHE)
        return Path(constants.HF_HOME) / "fedmr-merge" / re.sub(r"[^\w.-]", "_", urlsplit(self.endpoint).netloc)

    def snapshot_folder(self, repo_id: str, commit: str) -> Path:
        """Return where the cache keeps a repository's files at a commit."""
        return self.cache / repo_folder_name(repo_id=repo_id, repo_type="model") / "snapshots" / commit

    def _wait(self, attempt: int, failure: Passing) -> bool:
        """Wait before the next try and return True, or return False where there should be none."""
        patience = self.patience
        known = failure.connected or urlsplit(self.endpoint).netloc in Client.reached
        retries = patience.retries if known else min(patience.retries, patience.first_contact_retries)
        if attempt >= retries or failure.wait_seconds > patience.longest_wait_seconds:
            return False
        backoff = min(patience.first_wait_seconds * 2**attempt, patience.longest_wait_seconds)
        seconds = max(backoff, failure.wait_seconds)
        if (report := on_wait.get()) is not None:
            number = f"{attempt + 1} of {retries}"
            report(f"{self.endpoint}: {failure.reason}; trying again in {seconds:.3g} seconds ({number})")
        time.sleep(seconds)
        return True

    def commit_id(self, value: object, subject: str) -> str:
        """Return a commit id that the endpoint gave, refused unless it is 40 hex digits: it becomes a folder's name."""
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{40}", value):
            raise HubError(
                f"{subject}: {self.endpoint} gave a malformed commit id, {str(value)[:80]!r}",
                hint="do not use this endpoint's files",
            )
        return value


def _may_have_landed(cause: BaseException) -> bool:
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in CONFLICT_STATUS
    return isinstance(cause, Passing)


@contextlib.contextmanager
def open_hub(
    *,
    endpoint: str | None = None,
    token: str | None = None,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Iterator[Hub]:
    """Give a Hub to talk to for the length of a block; its connections are closed after it.

    `endpoint` comes from the argument or from HF_ENDPOINT; `token` from the argument, from HF_TOKEN or from
    `hf auth login`.

    Raises HubError when the endpoint is neither https nor on this machine.
    """
    hub = Hub(choose_endpoint(endpoint), _choose_token(token), patience or Patience(), Traffic(progress))
    try:
        yield hub
    finally:
        hub.close()


def choose_endpoint(endpoint: str | None) -> str:
    """Return the endpoint to talk to, the one given or that of HF_ENDPOINT, without a slash at its end.

    Raises HubError when it is not an address that a token may be sent to.
    """
    endpoint = endpoint or constants.ENDPOINT
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise HubError(f"{endpoint!r} is not an endpoint", hint="give an address such as https://huggingface.co")
    if parts.username or parts.password:
        raise HubError("the endpoint's address holds a password", hint="leave it out and use a token")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise HubError(f"{endpoint} is plain http: the token could be read on the way", hint="give its https address")
    return endpoint.rstrip("/")


def _choose_token(token: str | None) -> str | None:
    if not token and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        try:
            token = hf.get_token()
        except OSError as error:
            raise HubError(f"the stored token cannot be read: {error.strerror}", hint="set HF_TOKEN") from None
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise HubError("the token holds characters that no token has", hint="copy it again")
    return token or None
