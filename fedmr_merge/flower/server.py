"""The ServerApp of a recipe: it follows the recipe in a run folder of its machine, and clients train at nodes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmr_merge.errors import DataError, FedmrMergeError, TrainingError
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.data.partitions.nodes import Nodes
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.training.freed_memory import return_freed_memory
from fedmr_merge.flower.engine import FlowerEngine
from fedmr_merge.flower.events import event_line
from fedmr_merge.flower.exchange import Outgoing, exchange
from fedmr_merge.flower.node_data import Outline, outline_of, server_federation, stays_at_nodes, with_paths
from fedmr_merge.flower.nodes import NO_NODE_NAMED, Binding, FoundNodes
from fedmr_merge.flower.wire import QUERY, Question, Side, pack_facts, unpack_description
from fedmr_merge.recipe.deployment import Deployment
from fedmr_merge.recipe.identity import identity
from fedmr_merge.recipe.own import Own
from fedmr_merge.recipe.prepare import prepare
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
    return_freed_memory()
    try:
        if options.folder:
            os.chdir(options.folder)
        recipe = read_recipe(recipe_file, own=Own((recipe_file.parent, Path.cwd())))
        out = Path(options.out or f"runs/{recipe.name}")
        engine = FlowerEngine(grid, recipe, out)

        def prepared(recipe: Recipe, partition: Partition | None) -> Federation:
            # What the server computes, means and evaluations, it computes where the replies are; clients may have GPUs.
            here = replace(recipe, running=replace(recipe.running, device="cpu"))
            if not stays_at_nodes(recipe):
                return prepare(here, partition)
            own, outlines = gather_outlines(grid, recipe)
            return server_federation(here, outlines, own, partition)

        with Run(recipe, out, fresh=options.fresh, extend=options.extend, engine=engine, prepare=prepared) as run:
            _follow(grid, recipe, run, out, report)
    except FedmrMergeError as error:
        report({"event": "error", "message": str(error), "hint": error.hint, "exit_code": error.exit_code})
        raise


def _follow(grid: Grid, recipe: Recipe, run: Run, out: Path, report: Report) -> None:
    clients, metric = len(run.federation.partition), run.federation.task.decisive
    _require_known_clients(recipe, clients)
    resumed = run.resumed_from.round if run.resumed_from else 0
    report({"event": "begun", "folder": str(out.absolute()), "resumed_after": resumed, "notes": run.warnings()})
    found = _wait_for_nodes(grid, recipe, clients)
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
                "decisive": {"name": metric.name, "value": result.metrics.get(metric.key)},
                "seconds": event.seconds,
                "missing": {str(client): reason for client, reason in result.missing.items()},
                "diverged": {str(client): fault for client, fault in result.diverged.items()},
                "reached": event.reached,
            }
        )
    report({"event": "done"})


def gather_outlines(grid: Grid, recipe: Recipe) -> tuple[Data, list[Outline]]:
    """Ask every client what data it has; return the server's own data, and the outlines by client.

    Raises DataError when a client does not answer, or has data that do not fit the server's.
    """
    from flwr.app import Message

    deployment = recipe.deployment or Deployment()
    own = with_paths(recipe, deployment.server, "deployment.server").data.load()
    assert isinstance(recipe.partition, Nodes)
    clients, side = recipe.partition.clients, Side.here(identity(recipe))
    _require_known_clients(recipe, clients)
    nodes = _wait_for_nodes(grid, recipe, clients)

    def question(client: int, node: int) -> Outgoing:
        content = pack_facts(Question(side.version, side.recipe, client))
        return Outgoing(client, node, Message(content, node, QUERY, ttl=deployment.timeout_seconds))

    found = exchange(
        grid,
        (question(client, node) for client, node in nodes.ids.items()),
        deployment.timeout_seconds,
        lambda client, content: unpack_description(content, side, client),
    )
    unasked = [client for client in range(clients) if client not in nodes.ids]
    reasons = {client: nodes.faults.get(client, NO_NODE_NAMED) for client in unasked} | found.reasons
    if reasons:
        client, reason = min(reasons.items())
        more = f" (and {len(reasons) - 1} more clients)" if len(reasons) > 1 else ""
        raise DataError(
            f"client {client} does not describe its data: {reason}{more}",
            hint="a run begins, and is resumed, when all nodes of the recipe are online",
            client=client,
        )
    claims = [found.contents[client] for client in range(clients)]
    return own, [outline_of(claim, own, client, deployment.most_examples) for client, claim in enumerate(claims)]


def _require_known_clients(recipe: Recipe, clients: int) -> None:
    """Raise TrainingError when a name of `deployment.clients` is that of a client that the recipe does not have."""
    named = (recipe.deployment or Deployment()).clients
    if unknown := sorted(name for name, number in named.items() if number >= clients):
        raise TrainingError(
            f"deployment.clients: {unknown[0]!r} is client {named[unknown[0]]}, and the recipe has {clients} clients",
            hint="clients are counted from 0",
        )


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
