"""Make huggingface_hub's own functions use this package's HTTP client for the length of one call.

The library has one HTTP client for the whole process, and its settings, log levels and progress bars are global too.
They are changed only while a call runs, by one thread at a time, and are what they were after it, whatever happens.

Importing this module imports huggingface_hub.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx2
from huggingface_hub import constants
from huggingface_hub.utils import _http as hf_http
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

#: One call at a time. A thread may call again within its own call.
_LOCK = threading.RLock()
_LOGGERS = ("huggingface_hub", "httpx2", "httpcore2")
#: No telemetry; and blobs that lie in a repository's own cache folder: shared ones are links out of it.
_SETTINGS = {"HF_HUB_DISABLE_TELEMETRY": True, "HF_HUB_DISABLE_SHARED_BLOBS": True}


@contextlib.contextmanager
def talking_through(client: Callable[[], httpx2.Client], settings: Mapping[str, Any]) -> Iterator[None]:
    """Let huggingface_hub send its requests through a client, for the length of a block.

    Inside it the library draws no bars, logs no warnings (they hold signed addresses) and sends no telemetry;
    `settings` are further names of `huggingface_hub.constants` and their values. The client that the library had, which
    other threads may be using, is neither closed nor replaced for good.
    """
    with _LOCK, _quiet(), _constants({**_SETTINGS, **settings}), _session(client):
        yield


@contextlib.contextmanager
def _session(client: Callable[[], httpx2.Client]) -> Iterator[None]:
    # The public `set_client_factory` closes the client that is in use, and there is no public way to read the factory.
    with hf_http._CLIENT_LOCK:
        before = hf_http._GLOBAL_CLIENT_FACTORY, hf_http._GLOBAL_CLIENT
        hf_http._GLOBAL_CLIENT_FACTORY, hf_http._GLOBAL_CLIENT = client, None
    try:
        yield
    finally:
        with hf_http._CLIENT_LOCK:
            hf_http._GLOBAL_CLIENT_FACTORY, hf_http._GLOBAL_CLIENT = before


@contextlib.contextmanager
def _constants(values: Mapping[str, Any]) -> Iterator[None]:
    before = {name: getattr(constants, name) for name in values}
    try:
        for name, value in values.items():
            setattr(constants, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(constants, name, value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
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
