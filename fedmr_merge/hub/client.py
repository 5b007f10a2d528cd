"""Open a Hub and ask it: one endpoint, one token, the same patience with every call.

Importing this module imports huggingface_hub: import it inside the function that needs the Hub.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
import huggingface_hub as hf
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import _http as hf_http
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status
from huggingface_hub.utils._runtime import is_xet_available
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from fedmr_merge import __version__
from fedmr_merge.checkpoint.writer import Progress
from fedmr_merge.errors import HubError
from fedmr_merge.hub.errors import Passing, explain, root_cause
from fedmr_merge.hub.http import CONFLICT_STATUS, Client, Patience, Traffic, is_loopback

T = TypeVar("T")

#: What the client raises when a call fails, or when it cannot make sense of an answer.
_FAILURES = (Passing, httpx2.HTTPError, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True)
class Hub:
    """A Hub that is open; `api` is huggingface_hub's."""

    endpoint: str
    api: hf.HfApi
    token: str | None
    patience: Patience
    traffic: Traffic

    def ask(self, subject: str, call: Callable[[], T], *, landed: Callable[[], T | None] | None = None) -> T:
        """Make a call, and make it again while the failure may pass.

        `landed` is for a call that must not take effect twice: it is asked after each failure that may have come after
        the deed, and what it finds, if anything, is the answer.

        Raises UnreachedError when no try was answered, HubError with what to do for everything else.
        """
        attempt = 0
        while True:
            try:
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

    def download(self, repo_id: str, commit: str, file: str) -> str:
        """Fetch one file into the cache, unless it is there, and return its local path. For `ask`: it tries once."""
        return self.api.hf_hub_download(repo_id, file, revision=commit, cache_dir=self.cache)

    def choose_transfer(self, repo_id: str, revision: str | None, *, create_pr: bool) -> None:
        """Leave xet off until the Hub is closed where the endpoint has none: the client itself does not fall back."""
        if not is_xet_available():
            return
        branch = "None?create_pr=1" if create_pr else quote(revision or "main", safe="")
        url = f"{self.endpoint}/api/models/{repo_id}/xet-write-token/{branch}"

        def call() -> bool:
            response = hf.get_session().get(url, headers=self._headers())
            if response.status_code != 404:
                hf_raise_for_status(response)
            return response.status_code != 404

        constants.HF_HUB_DISABLE_XET = not self.ask(repo_id, call)

    def read_range(self, repo_id: str, commit: str, file: str, start: int, end: int, size: int) -> bytes:
        """Return bytes `start` to `end` of a file of `size` bytes, also from an endpoint that knows no ranges.

        Raises HubError when the endpoint's size is another, or as `ask` does.
        """
        subject = f"{repo_id}@{commit}: {file}"
        url = hf.hf_hub_url(repo_id, file, revision=commit, endpoint=self.endpoint)
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}

        def call() -> bytes:
            with hf.get_session().stream("GET", url, headers={**self._headers(), **headers}) as response:
                hf_raise_for_status(response)
                whole = response.status_code != 206
                told = response.headers.get("Content-Length" if whole else "Content-Range", "").rpartition("/")[2]
                if told != str(size):
                    raise HubError(
                        f"{subject}: the endpoint lists {size} bytes and sends {told[:20] or 'an unknown size'}"
                    )
                skip = start if whole else 0
                body = bytearray()
                for piece in response.iter_raw():
                    body += piece
                    if len(body) >= skip + end - start:
                        return bytes(body[skip : skip + end - start])
                raise Passing("the connection was cut")

        return self.ask(subject, call)

    def _headers(self) -> dict[str, str]:
        return build_hf_headers(token=self.token or False, library_name="fedmr-merge", library_version=__version__)

    @property
    def offline(self) -> bool:
        """Whether HF_HUB_OFFLINE forbids any request."""
        return constants.is_offline_mode()

    @property
    def cache(self) -> Path:
        """huggingface_hub's cache. It is keyed by names alone, so that an endpoint given by hand has one of its own."""
        if self.endpoint == constants.ENDPOINT:
            return Path(constants.HF_HUB_CACHE)
        return Path(constants.HF_HOME) / "fedmr-merge" / re.sub(r"[^\w.-]", "_", urlsplit(self.endpoint).netloc)

    def snapshot_folder(self, repo_id: str, commit: str) -> Path:
        """Return where the cache keeps a repository's files at a commit."""
        return self.cache / repo_folder_name(repo_id=repo_id, repo_type="model") / "snapshots" / commit

    def _wait(self, attempt: int, failure: Passing) -> bool:
        patience = self.patience
        known = failure.connected or urlsplit(self.endpoint).netloc in Client.reached
        retries = patience.retries if known else min(patience.retries, patience.first_contact_retries)
        if attempt >= retries or failure.wait_seconds > patience.longest_wait_seconds:
            return False
        backoff = min(patience.first_wait_seconds * 2**attempt, patience.longest_wait_seconds)
        time.sleep(max(backoff, failure.wait_seconds))
        return True

    def commit_id(self, value: object, subject: str) -> str:
        """Return a commit id that the endpoint gave, refused unless it is 40 hex digits: it becomes a folder's name."""
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{40}", value):
            raise HubError(f"{subject}: {self.endpoint} gave a malformed commit id, {str(value)[:80]!r}")
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
    """Talk to a Hub for the length of a block.

    `endpoint` comes from the argument or from HF_ENDPOINT; `token` from the argument, from HF_TOKEN or from
    `hf auth login`. Inside the block the client draws no bars, logs no warnings (they hold signed addresses) and sends
    no telemetry; what it was set to before is restored after it.

    Raises HubError when the endpoint is neither https nor on this machine.
    """
    patience, traffic = patience or Patience(), Traffic(progress)
    endpoint = choose_endpoint(endpoint)
    token = _choose_token(token)
    api = hf.HfApi(endpoint, token or False, library_name="fedmr-merge", library_version=__version__)
    # Shared blobs are links out of a repository's own cache folder.
    settings = {"HF_HUB_DISABLE_TELEMETRY": True, "HF_HUB_DISABLE_SHARED_BLOBS": True}
    with (
        _quiet_client(),
        _settings(**settings, HF_HUB_DISABLE_XET=constants.HF_HUB_DISABLE_XET),
        _client_factory(lambda: Client(endpoint, patience, traffic)),
    ):
        yield Hub(endpoint, api, token, patience, traffic)


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


@contextlib.contextmanager
def _client_factory(factory: Callable[[], httpx2.Client]) -> Iterator[None]:
    before = hf_http._GLOBAL_CLIENT_FACTORY  # there is a public way to set it, none to read it
    hf.set_client_factory(factory)
    try:
        yield
    finally:
        hf.set_client_factory(before)


@contextlib.contextmanager
def _settings(**values: Any) -> Iterator[None]:
    before = {name: getattr(constants, name, None) for name in values}
    try:
        for name, value in values.items():
            setattr(constants, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(constants, name, value)


@contextlib.contextmanager
def _quiet_client() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "httpx2", "httpcore2")]
    levels, bars = [logger.level for logger in loggers], not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        if bars:
            disable_progress_bars()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if bars:
                enable_progress_bars()
