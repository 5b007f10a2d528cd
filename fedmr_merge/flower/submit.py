"""Send a recipe to a SuperLink and follow its run there to the end."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedmr_merge.errors import FedmrMergeError, RunError, shown
from fedmr_merge.flower.app_folder import APP_MODULE, write_app
from fedmr_merge.flower.commands import RunStatus, flwr, log_lines, run_status
from fedmr_merge.flower.events import read_event
from fedmr_merge.flower.server import ServerOptions
from fedmr_merge.recipe.schema import Recipe

_SETTLE_SECONDS = 30.0  # between the end of a run's log and the SuperLink's word that the run is over
_LOOK_EVERY_SECONDS = 0.5


class FailedRunError(FedmrMergeError):
    """A run that ended with an error on the machine of the SuperLink, with the exit code that it had there."""

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = 2) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def submit(
    recipe: Recipe, connection: str, options: ServerOptions, code: Sequence[Path] = ()
) -> Generator[dict[str, Any], None, None]:
    """Run a recipe at a SuperLink, yielding what its ServerApp reports as it happens.

    Whether the run is completed is what the SuperLink says in the end: Flower's own command exits with 0 also where
    the ServerApp failed.

    Args:
        recipe: The checked recipe.
        connection: The name of a connection in Flower's configuration.
        options: Where the run folder is, and whether a run there is replaced or extended.
        code: Folders with modules of the user's own that the recipe names.

    Raises RunError when the SuperLink cannot be reached, FailedRunError when the run failed.
    """
    with tempfile.TemporaryDirectory(prefix="fedmr-merge-app-") as folder:
        app = Path(folder) / "fedmr-merge-app"
        write_app(recipe, app, code=code, config=asdict(options))
        # Flower looks for the app's module as Python does, which remembers where that of another app was.
        sys.modules.pop(APP_MODULE, None)
        run = str(flwr("run", str(app), connection)["run-id"])
    yield {"event": "submitted", "run": run}
    failure: dict[str, Any] | None = None
    seen = 0
    while True:
        # A log that broke off, as the SuperLink was started again, is read from its beginning.
        events = (event for event in map(read_event, log_lines(run, connection)) if event is not None)
        for number, event in enumerate(events):
            if number < seen:
                continue
            seen += 1
            if event["event"] == "error":
                failure = event
            else:
                yield event
        status = _final_status(run, connection)
        if status.is_over:
            break
    if status.is_completed:
        return
    if failure is not None:
        raise FailedRunError(
            str(failure.get("message")), hint=failure.get("hint"), exit_code=int(failure.get("exit_code") or 2)
        )
    raise FailedRunError(
        f"run {run} of the SuperLink {shown(connection)!r} is {status.status}: {shown(status.details) or 'no details'}",
        hint=f"`flwr log {run} {connection} --show` prints its log; the same command resumes the run",
        exit_code=1,
    )


def _final_status(run: str, connection: str) -> RunStatus:
    """Return how a run ended; one that is still running after a while has only lost its log stream."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        try:
            status = run_status(run, connection)
        except RunError:
            if time.monotonic() >= deadline:
                raise
        else:
            if status.is_over or time.monotonic() >= deadline:
                return status
        time.sleep(_LOOK_EVERY_SECONDS)
