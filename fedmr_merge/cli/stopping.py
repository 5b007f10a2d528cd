"""What a batch system's signal to stop does to a command that can be resumed."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import NoReturn


@contextlib.contextmanager
def saving_when_terminated() -> Iterator[None]:
    """Within the block SIGTERM, with which a batch system stops a job, saves what is done as Ctrl-C does."""

    def stop(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
