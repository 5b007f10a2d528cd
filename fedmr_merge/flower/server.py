"""The ServerApp of a recipe: it follows the recipe in a run folder of its machine, and clients train at nodes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmr_merge.errors import FedmrMergeError
from fedmr_merge.flower.engine import FlowerEngine
from fedmr_merge.flower.events import event_line
from fedmr_merge.flower.nodes import Binding, FoundNodes
from fedmr_merge.recipe.deployment import Deployment
from fedmr_merge.recipe.run import RoundDone, Run
from fedmr_merge.recipe.schema import Recipe, read_recipe

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp

_LOOK_EVERY_SECONDS = 1.0
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ServerOptions:
    """What the run configuration says."""

    out: str = ""  #: the run folder; "" is runs/NAME
    fresh: bool = False
    extend: bool = False
    folder: str = ""  #: the folder that the paths of the recipe are relative to; "" is that of the SuperLink


def server_app(recipe: Path) -> ServerApp:
    """Return the app that follows a recipe."""
    from flwr.serverapp import ServerApp

    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        known = {key: context.run_config[key] for key in vars(ServerOptions()) if key in context.run_config}
        serve(grid, recipe, ServerOptions(**known), _print)

    app.main()(main)
    return app


def serve(grid: Grid, recipe_file: Path, options: ServerOptions, report: Report) -> None:
    """Follow a recipe to its end and report what happens. Raises FedmrMergeError, which is reported too."""
    try:
        if options.folder:
            os.chdir(options.folder)
        recipe = read_recipe(recipe_file)
        out = Path(options.out or f"runs/{recipe.name}")
        engine = FlowerEngine(grid, recipe)
        with Run(recipe, out, fresh=options.fresh, extend=options.extend, engine=engine) as run:
            _follow(grid, recipe, run, out, report)
    except FedmrMergeError as error:
        report({"event": "error", "message": str(error), "hint": error.hint, "exit_code": error.exit_code})
        raise


def _follow(grid: Grid, recipe: Recipe, run: Run, out: Path, report: Report) -> None:
    resumed = run.resumed_from.round if run.resumed_from else 0
    report({"event": "begun", "folder": str(out.absolute()), "resumed_after": resumed, "notes": run.notes})
    found = _wait_for_nodes(grid, recipe, len(run.federation.partition))
    report({"event": "nodes", "found": len(found.ids), "missing": sorted(found.faults.items())[:10]})
    for event in run.execute():
        if not isinstance(event, RoundDone):
            report({"event": "stage", "name": event.name, "message": event.message})
            continue
        result = event.result
        report(
            {
                "event": "round",
                "round": result.round,
                "method": result.method,
                "metrics": dict(result.metrics),
                "seconds": event.seconds,
                "missing": {str(client): reason for client, reason in result.missing.items()},
                "diverged": {str(client): fault for client, fault in result.diverged.items()},
                "reached": event.reached,
            }
        )
    report({"event": "done"})


def _wait_for_nodes(grid: Grid, recipe: Recipe, clients: int) -> FoundNodes:
    """Wait until every client's node is online, but no longer than for a reply; return what was found."""
    deployment = recipe.deployment or Deployment()
    binding = Binding.of(clients, deployment.clients)
    deadline = time.monotonic() + deployment.timeout_seconds
    while True:
        found = FoundNodes.among(grid.get_nodes(), binding)
        if not found.faults or time.monotonic() >= deadline:
            return found
        time.sleep(_LOOK_EVERY_SECONDS)


def _print(event: dict[str, Any]) -> None:
    print(event_line(event), flush=True)  # noqa: T201 - the log of a ServerApp is its way to whoever started it
