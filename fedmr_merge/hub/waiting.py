"""The callback for calls to the Hub that failed and will be made again; the command line sets it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

#: Called with one line before each wait, such as `https://huggingface.co: status 503; trying again in 2 seconds`.
on_wait: ContextVar[Callable[[str], None] | None] = ContextVar("on_wait", default=None)
