"""Commands for runs over several machines: flower app, nodes, doctor; and `run --on`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmr_merge.cli import console, progress
from fedmr_merge.cli.arguments import UsageError
from fedmr_merge.cli.help import App
from fedmr_merge.cli.run_view import closing_words, round_words
from fedmr_merge.errors import FedmrMergeError, shown

if TYPE_CHECKING:
    from fedmr_merge.recipe.schema import Recipe

flower_app = App("Run recipes on several machines, with Flower.")
Connection = Annotated[
    str, typer.Argument(metavar="NAME", help="A connection to a SuperLink, in Flower's own configuration.")
]


@dataclass(frozen=True)
class Where:
    """Where the clients of a run train, as `--on` says it."""

    connection: str | None  #: a SuperLink of the user's own; None: a rehearsal on this machine

    @classmethod
    def of(cls, text: str) -> Where:
        """Read the value of `--on`. Raises UsageError for another one."""
        place, colon, name = text.partition(":")
        if place != "flower" or bool(colon) != bool(name):
            raise UsageError(
                f"--on {shown(text)}: is not a place where clients train",
                hint="flower rehearses on this machine; flower:NAME is a connection in Flower's own configuration",
            )
        return cls(name or None)


def run_on(
    where: Where, recipe: Recipe, folder: Path, again: str, *, code: Sequence[Path], options: dict[str, Any]
) -> None:
    """Follow a recipe over the nodes of a SuperLink and show what happens; `again` is the command that resumes it.

    Args:
        where: The SuperLink, or a rehearsal.
        recipe: The checked recipe.
        folder: The run folder, on the machine of the SuperLink.
        again: The command that resumes the run.
        code: Folders with modules of the user's own that the recipe names.
        options: `fresh` and `extend`, and `out` where the user named the run folder.
    """
    with progress.waiting("loading Flower"):
        from fedmr_merge.flower.commands import require_flower
        from fedmr_merge.flower.server import ServerOptions
        from fedmr_merge.flower.submit import submit

        require_flower()
    if where.connection is not None:
        _show_nodes_needed(recipe, where.connection)
        remote = ServerOptions(out=str(options["out"] or ""), fresh=options["fresh"], extend=options["extend"])
        follow_events(recipe, submit(recipe, where.connection, remote, code), again, where.connection)
        return
    from fedmr_merge.flower.rehearsal import CONNECTION, Rehearsal, require_memory

    nodes = _rehearsed_nodes(recipe)
    names = list(nodes)
    require_memory(len(names))
    here = ServerOptions(str(folder.absolute()), options["fresh"], options["extend"], str(Path.cwd()))
    with contextlib.ExitStack() as stack:
        with progress.waiting(f"starting a SuperLink and {console.plural(len(names), 'node')}"):
            stack.enter_context(Rehearsal(names, {name: text for name, text in nodes.items() if text}))
        console.say(f"nodes: {len(names)} needed, {len(names)} found")
        follow_events(recipe, submit(recipe, CONNECTION, here, code), again, None)
    closing_words(recipe, folder, again)


def _rehearsed_nodes(recipe: Recipe) -> dict[str, str]:
    """Check all that can be checked before a process is started; return the names of the nodes, and what is given as
    --node-config to each.
    """
    from fedmr_merge.flower.node_data import rehearsed_federation, rehearsed_values, stays_at_nodes
    from fedmr_merge.flower.nodes import Binding
    from fedmr_merge.recipe.deployment import Deployment
    from fedmr_merge.recipe.prepare import check_stages, prepare

    deployment = recipe.deployment or Deployment()
    apart = stays_at_nodes(recipe)
    if apart and not deployment.rehearsal:
        raise UsageError(
            "--on flower rehearses with data of this machine, and the recipe's are on the clients' machines",
            hint="say in deployment.rehearsal where each client has data here, e.g. {data: parts/$NAME}, choose "
            "another data.partition, or name a SuperLink: --on flower:NAME",
        )
    if apart:
        names = Binding.of(getattr(recipe.partition, "clients", 0), deployment.clients).names
        federation = rehearsed_federation(recipe, names)
    else:
        federation = prepare(recipe)
        names = Binding.of(len(federation.partition), deployment.clients).names
    check_stages(recipe, federation)
    _show_costs(recipe, federation)
    return {
        name: " ".join(f"{key}={json.dumps(value)}" for key, value in rehearsed_values(recipe, name).items())
        for name in names.values()
    }


def _show_costs(recipe: Recipe, federation: Any) -> None:
    from fedmr_merge.recipe.prepare import stage_traffic

    for stage, traffic in stage_traffic(recipe, federation):
        down, up = (console.size(count // federation.slots) for count in (traffic.down, traffic.up))
        console.say(f"{stage.name}: {down} to each of {federation.slots} nodes in a round, {up} back")
    console.say(
        "every round takes at least about 6 seconds beyond the training: a client starts anew for every message"
    )


def _show_nodes_needed(recipe: Recipe, connection: str) -> None:
    """Report what a round needs and which nodes there are."""
    from fedmr_merge.flower.commands import registered_nodes
    from fedmr_merge.flower.nodes import client_of_name
    from fedmr_merge.recipe.deployment import Deployment

    named = (recipe.deployment or Deployment()).clients
    online = [node.name for node in registered_nodes(connection) if node.status == "online"]
    clients = {client_of_name(name, named) for name in online} - {None}
    known = _show_costs_if_known(recipe)
    needed = len(named) or known
    console.say(f"nodes: {needed or 'one for each client'} needed, {len(clients)} online")


def _show_costs_if_known(recipe: Recipe) -> int | None:
    """Show what a round sends, and return the number of clients; None where it is not known on this machine.

    The other machines follow the recipe: this one may lack the data, the model, the key file and a GPU.
    """
    from fedmr_merge.recipe.prepare import prepare

    here = replace(recipe, running=replace(recipe.running, device="cpu"))
    try:
        federation = prepare(here)
        _show_costs(here, federation)
    except FedmrMergeError as error:
        console.complain("note", f"the bytes of a round are not known here: {error.message}")
        clients: int | None = getattr(recipe.partition, "clients", None)
        return clients
    return len(federation.partition)


def follow_events(
    recipe: Recipe, events: Generator[dict[str, Any], None, None], again: str, connection: str | None
) -> None:
    """Show what the ServerApp of a run reports, to its end; `again` is the command that resumes the run.

    `connection` is the SuperLink where the run goes on without this command; None: a rehearsal, which ends with it.
    """
    done, run = 0, ""
    try:
        with progress.rounds_progress(recipe.name, recipe.rounds) as show:
            for event in events:
                run = event.get("run", run)
                done = _show_event(event, show, done)
    except (KeyboardInterrupt, SystemExit):
        if connection is None:
            words = f"after round {done} of {recipe.rounds}; this command resumes with the next round: {again}"
        elif not run:
            words = f"nothing was submitted, unless `flwr ls {connection}` lists a new run; "
            words += f"this command starts again: {again}"
        else:
            words = f"the run continues at the SuperLink; `flwr stop {run} {connection}` stops it, and "
            words += f"this command resumes it: {again}"
        console.complain("stopped", words)
        raise
    finally:
        events.close()


def _show_event(event: dict[str, Any], show: Any, done: int) -> int:
    """Print what has happened; returns the number of rounds done."""
    kind = event["event"]
    if kind == "begun":
        console.say(f"run folder: {event['folder']}")
        for note in event["notes"]:
            console.complain("warning", note)
        if event["resumed_after"]:
            console.say(f"resumed after round {event['resumed_after']}")
        return int(event["resumed_after"])
    if kind == "nodes":
        for client, reason in event["missing"]:
            console.complain("warning", f"client {client} has no node: {reason}")
    if kind == "stage":
        console.say(f"{event['name']}: {event['message']}")
    if kind != "round":
        return done
    last = int(event["round"])
    for client, reason in event["missing"].items():
        console.complain("warning", f"round {last}: client {client} is missing: {reason}")
    for client, fault in event["diverged"].items():
        console.complain("warning", f"round {last}: client {client} diverged: {fault}")
    show(last, round_words(event["method"], event["decisive"]["name"], event["decisive"]["value"], event["metrics"]))
    if event["reached"]:
        console.say(f"{event['method']}: over after round {last}, {event['reached']}")
    return last


@flower_app.command("app")
def write(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe (a YAML file), or the name of one.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where to write; it must not exist yet.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change an option, e.g. training.lr=0.05; repeatable."),
    ] = None,
) -> None:
    """Write a recipe as a Flower app, for `flwr run`.

    Example: fedmr-merge flower app recipe.yaml -o app
    """
    with progress.waiting("reading the recipe, loading torch"):
        from fedmr_merge.flower.app_folder import write_app

        checked, code = _read(recipe, settings or ())
    write_app(checked, out, code=code)
    console.say(f"app: {out}")
    console.say(f"next: flwr run {out} NAME --stream")


@flower_app.command("nodes")
def nodes(
    name: Connection,
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe, to see which client each node is.")
    ] = None,
) -> None:
    """Show which nodes are registered at a SuperLink, which of them are online, and which client each is.

    Example: fedmr-merge flower nodes hospital recipe.yaml
    """
    with progress.waiting("asking the SuperLink"):
        from fedmr_merge.flower.commands import registered_nodes
        from fedmr_merge.flower.nodes import Binding, client_of_name
        from fedmr_merge.recipe.deployment import Deployment

        found = registered_nodes(name)
    checked = _read(recipe)[0] if recipe else None
    named = (checked.deployment or Deployment()).clients if checked else {}
    clients = [client_of_name(node.name, named) for node in found]
    rows = [
        [node.name or "(none)", str(node.node_id), node.status, "" if client is None else str(client)]
        for node, client in zip(found, clients, strict=True)
    ]
    console.table(("name", "node", "status", "client"), rows, right=("client",))
    online = sum(node.status == "online" for node in found)
    console.say(f"{console.plural(len(found), 'node')}, {online} online")
    needed = getattr(checked.partition, "clients", 0) if checked else 0
    registered = {node.name for node in found}
    wanted = sorted((name, client) for client, name in Binding.of(needed, named).names.items())
    if missing := [f"{name} (client {client})" for name, client in wanted if name not in registered]:
        console.complain("warning", f"no node is registered as {console.listed(missing, between=', ')}")


def _read(recipe: str, settings: Sequence[str] = ()) -> tuple[Recipe, tuple[Path, ...]]:
    """Return a checked recipe, and the folders of the modules that it names."""
    from fedmr_merge.recipe.own import Own
    from fedmr_merge.recipe.ready_made import locate_recipe
    from fedmr_merge.recipe.schema import read_recipe

    located = locate_recipe(recipe)
    return read_recipe(located.path, settings, Own(located.code_folders)), located.code_folders


@flower_app.command("doctor")
def doctor(name: Connection) -> None:
    """Look for what would fail with a SuperLink: version, address, certificate, clock, nodes.

    Example: fedmr-merge flower doctor hospital
    """
    with progress.waiting("looking at the connection"):
        from fedmr_merge.flower.commands import require_flower
        from fedmr_merge.flower.doctor import examine

        require_flower()
        checks = examine(name)
    console.table(
        ("", "subject", "finding"),
        [["ok" if check.is_fine else "fails", check.subject, check.finding] for check in checks],
    )
    if failed := [check.subject for check in checks if not check.is_fine]:
        raise FedmrMergeError(f"{', '.join(failed)}: a run with the SuperLink {name!r} would fail")
