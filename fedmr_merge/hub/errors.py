"""Explain a failed call to the Hub: what it means, in one line, and what to do about it.

Importing this module imports huggingface_hub.
"""

from __future__ import annotations

import errno
import math
import re

import httpx2
from huggingface_hub import errors as hf

from fedmr_merge.errors import HubError, UnreachedError

_TOKENS = "https://huggingface.co/settings/tokens"
_LOGIN = f"make a token at {_TOKENS}, then `hf auth login`, or set HF_TOKEN"
_WRITE = f"use a token with write access ({_TOKENS}) of an account that may write there"
_AGAIN = "check the connection, then run the same command again: it continues where this one stopped"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Passing(Exception):  # noqa: N818 - never leaves `Hub.ask`
    """A call that failed and may succeed when it is made again."""

    def __init__(self, reason: str, *, wait_seconds: float = 0.0, connected: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_seconds = wait_seconds  #: what the server asked for
        self.connected = connected  #: whether there was a server at all


def passing(error: httpx2.TransportError) -> Passing:
    """Return why a connection failed, without the error's text: it can hold an address with a signature."""
    if isinstance(error, httpx2.TimeoutException):
        return Passing("no answer in time")
    if isinstance(error, httpx2.ConnectError):
        return Passing(f"cannot be reached ({error})", connected=False)
    if isinstance(error, httpx2.ProxyError):
        return Passing("the proxy refused the connection")
    return Passing("the connection was cut")


def root_cause(error: BaseException) -> BaseException:
    """Return the error that says most: the client wraps failures of its threads and of its cache into others."""
    link: BaseException | None = error
    seen: list[BaseException] = []
    while link is not None and link not in seen:
        seen.append(link)
        if isinstance(link, (Passing, HubError, hf.HfHubHTTPError, hf.OfflineModeIsEnabled)):
            return link
        if isinstance(link, httpx2.TransportError):
            return passing(link)
        if isinstance(link, (ConnectionError, TimeoutError)):  # xet's
            return Passing("the connection to the storage failed")
        link = link.__cause__ or link.__context__
    return error


_SHOWN = 60  #: characters of a name that cannot be one
_WHAT_IS_A_NAME = "each part of ORG/NAME has 96 characters at most: letters, digits, `-`, `_` and `.`, not at an end"


def explain(cause: BaseException, subject: str, endpoint: str, token: str | None) -> HubError:
    """Return the error that says in one line what failed, and what to do about it; the token stands in neither."""
    hint: str | None
    if isinstance(cause, Passing):
        wait = math.ceil(cause.wait_seconds)
        message = f"{subject}: {endpoint}: {cause.reason}"
        return UnreachedError(message, hint=f"try again in {wait} seconds" if wait else _AGAIN, wait_seconds=wait)
    if isinstance(cause, hf.HFValidationError):
        shown = subject if len(subject) <= _SHOWN else f"{subject[:_SHOWN]}…"
        return HubError(f"{shown}: not a name that a repository can have", hint=_WHAT_IS_A_NAME)
    if isinstance(cause, hf.OfflineModeIsEnabled):
        message, hint = "offline mode is on", "unset HF_HUB_OFFLINE, or name a commit that is in the cache"
    elif isinstance(cause, hf.HfHubHTTPError):
        message, hint = _refusal(cause, endpoint, token is not None)
        message += _server_words(cause, message)
    elif isinstance(cause, OSError):
        place = f"{cause.filename}: " if isinstance(cause.filename, str) else ""
        message, hint = place + (cause.strerror or _one_line(str(cause))), _machine_hint(cause)
    else:
        message = f"{endpoint} gave an answer that makes no sense ({_one_line(str(cause))})"
        hint = "check that the endpoint is a Hub, and that nothing on the way changes its answers"
    message = f"{subject}: {message}"
    status = cause.response.status_code if isinstance(cause, hf.HfHubHTTPError) else None
    return HubError(message.replace(token, "***") if token else message, hint=hint, status=status)


def _machine_hint(error: OSError) -> str:
    if error.errno in _FULL:
        return "make room there, or set HF_HOME to a place with more"
    return "check the folder of the Hub's cache, or set HF_HOME to another one"


def _refusal(error: hf.HfHubHTTPError, endpoint: str, has_token: bool) -> tuple[str, str | None]:
    status = error.response.status_code
    if isinstance(error, hf.GatedRepoError):
        repo = getattr(error, "repo_id", None)
        return "access is gated", f"ask for it at {endpoint}/{repo or ''}".rstrip("/")
    if isinstance(error, hf.RevisionNotFoundError):
        return "there is no such revision", "give a branch, a tag or a commit id"
    if isinstance(error, hf.EntryNotFoundError):
        return "there is no such file", "check the name; the repository may have changed meanwhile"
    if status == 401 and not isinstance(error, hf.RepositoryNotFoundError):
        return ("the token is not valid", _LOGIN) if has_token else ("no token was given", _LOGIN)
    if isinstance(error, hf.RepositoryNotFoundError):
        who = "this token may not see it" if has_token else "no token was given"
        return f"there is no such repository, or it is private and {who}", "check the name; " + _LOGIN
    if status == 403:
        return "this token may not do that", _WRITE
    if status in (409, 412):
        return "somebody else changed the repository during the push", "look at what was changed"
    if status == 413:
        return "the server refuses files of this size", "write smaller shards with --max-shard-size"
    return f"the server refused, with status {status}", "try again later, or ask those who run the endpoint"


def _server_words(error: hf.HfHubHTTPError, message: str) -> str:
    """Return what the server itself said, in brackets, where it adds something; without addresses."""
    words = _one_line(error.server_message or "")
    return f" ({words})" if words and words.lower() not in message.lower() else ""


def _one_line(text: str) -> str:
    return re.sub(r"https?://\S+", "…", " ".join(text.split()))[:200]
