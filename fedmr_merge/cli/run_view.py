"""What a terminal shows of a recipe and its run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmr_merge.cli import console, progress

if TYPE_CHECKING:
    from fedmr_merge.federated.data.examples import Data
    from fedmr_merge.federated.data.partition import Indices, Partition
    from fedmr_merge.federated.federation import Federation
    from fedmr_merge.federated.metrics import Metric
    from fedmr_merge.federated.training.gpu_memory import MemoryForecast
    from fedmr_merge.recipe.run import Event, Run
    from fedmr_merge.recipe.schema import Recipe


def follow(run: Run, folder: Path, again: str) -> None:
    """Do what is left of a run and show it; `again` is the command that resumes it."""
    recipe, resumed = run.recipe, run.resumed_from
    _announce(run, folder)
    done = resumed.round if resumed else 0
    try:
        with progress.rounds_progress(recipe.name, recipe.rounds, done) as show:
            for event in run.execute():
                done = _show_event(event, show, done, run.federation.task.decisive)
    except (KeyboardInterrupt, SystemExit):
        console.complain(
            "stopped", f"after round {done} of {recipe.rounds}; this command resumes with the next round: {again}"
        )
        raise
    closing_words(recipe, folder, again)


def _announce(run: Run, folder: Path) -> None:
    from fedmr_merge.federated.federation import describe_last_batches
    from fedmr_merge.federated.training.engines.description import describe_devices
    from fedmr_merge.recipe.prepare import parameters

    recipe, federation = run.recipe, run.federation
    console.say(
        f"{recipe.name}: {recipe.rounds} rounds of {federation.slots} of {len(federation.partition)} clients on "
        f"{federation.device.type}, {parameters(federation):,} parameters, in {folder}"
    )
    warn_of_data(federation.data, federation.partition, federation.held_out)
    _warn_of_precision(federation)
    for line in filter(None, (describe_last_batches(federation), describe_devices(federation))):
        console.say(line)
    if run.resumed_from:
        console.say(f"resumed after round {run.resumed_from.round}")
    for warning in run.warnings():
        console.complain("warning", warning)


def _show_event(event: Event, show: Callable[[int, str], None], done: int, metric: Metric) -> int:
    """Print what has happened; returns the number of rounds done."""
    from fedmr_merge.recipe.run import RoundDone

    if not isinstance(event, RoundDone):
        console.say(f"{event.name}: {event.message}")
        return done
    last = event.result
    for client, fault in last.diverged.items():
        console.complain("warning", f"round {last.round}: client {client} diverged: {fault}")
    show(last.round, round_words(last.method, metric.name, last.metrics.get(metric.key), last.metrics))
    if event.reached:
        console.say(f"{last.method}: over after round {last.round}, {event.reached}")
    return last.round


def round_words(method: str, name: str, value: float | None, metrics: Mapping[str, Any]) -> str:
    """Return the facts of a round: the task's decisive metric, by its name and value, and the loss.

    `value` is None after a round that was not evaluated.
    """
    loss = metrics.get("train_loss", metrics.get("test_loss"))
    parts = [f"{name} {value:.4f}" if value is not None else "", f"loss {loss:.4f}" if loss is not None else ""]
    return f"{method}: {', '.join(filter(None, parts)) or 'nothing was trained or evaluated'}"


def warn_of_data(data: Data, partition: Partition, held_out: tuple[Indices, ...] | None) -> None:
    """Report what was decided about the data, and the classes that no client has an example of to train on."""
    from fedmr_merge.federated.data.partition import missing_classes

    for note in data.notes:
        console.complain("note", note)
    if held_out is not None:
        count = sum(len(indices) for indices in held_out)
        console.complain("note", f"{count:,} examples are held out of training for validation")
    if missing := missing_classes(partition, data):
        what = f"class {missing[0]}: no model will learn it"
        if len(missing) > 1:
            what = f"{len(missing)} classes: no model will learn {console.listed(missing, ', ')}"
        console.complain("warning", f"no client has an example of {what}")


def _warn_of_precision(federation: Federation) -> None:
    """Report that a processor is slow at the precision that local training asks for, or may be faster at another."""
    from fedmr_merge.federated.training.precision import describe_slow_bf16, describe_unused_bf16
    from fedmr_merge.recipe.prepare import has_large_batches

    if federation.device.type != "cpu":
        return
    if federation.training.precision == "bf16" and (slow := describe_slow_bf16()):
        console.complain("warning", slow)
    if federation.training.precision == "fp32" and (unused := describe_unused_bf16()) and has_large_batches(federation):
        console.complain("note", unused)


def closing_words(recipe: Recipe, folder: Path, again: str) -> None:
    """Print where the results of a run are, and what can be done next."""
    from fedmr_merge.recipe.stages import Publish
    from fedmr_merge.runs.names import CHECKPOINTS, GLOBAL, METRICS, find_checkpoints

    published = folder / GLOBAL
    if published.is_dir():
        console.say(f"  model      {published / 'model.safetensors'}")
        console.say(f"  card       {published / 'README.md'}")
        console.say(f"  curve      {published / 'curves.png'}")
    console.say(f"  metrics    {folder / METRICS}")
    for name in recipe.running.log:
        console.say(f"             {folder / name}")
    console.say("next:")
    pushed = any(isinstance(stage, Publish) and stage.repo for stage in recipe.stages)
    if published.is_dir() and not pushed:
        console.say(f"  publish    fedmr-merge push {shlex.quote(str(published))} ORG/NAME")
    for place in find_checkpoints(folder / CHECKPOINTS)[-1:]:  # the newest
        checkpoint = folder / CHECKPOINTS / place.folder
        if len(list(checkpoint.glob("slot-*"))) > 1:
            console.say(f"  recombine  fedmr-merge recombine {shlex.quote(str(checkpoint))}/slot-*")
    console.say(f"  resume     {again}   (after any interruption)")


def show_recipe(recipe: Recipe, folder: Path) -> None:
    """Print the resolved recipe and what its run would take; nothing is written or fetched."""
    from fedmr_merge.errors import AbsentDataError, HubError
    from fedmr_merge.recipe.prepare import check_stages, prepare
    from fedmr_merge.runs.trackers import require_packages

    require_packages(recipe.running.log)
    federation, absent = None, ""
    try:
        federation = prepare(recipe)
        check_stages(recipe, federation)
    except (AbsentDataError, HubError) as error:
        absent = str(error)
    console.say(recipe.to_yaml().rstrip())
    if federation is not None:
        warn_of_data(federation.data, federation.partition, federation.held_out)
        _warn_of_precision(federation)
        _show_sizes(recipe, federation)
    if absent:
        console.say(f"not everything could be checked, as a dry run fetches nothing: {absent}")
    console.say(f"dry run: nothing was written to {folder}")


def memory_line(memory: MemoryForecast) -> str:
    """Return what a dry run reports of a GPU's memory."""
    needed, free = console.size(memory.client_bytes), console.size(memory.free_bytes)
    return (
        f"memory: a client needs at least {needed} while it trains, and {free} of the GPU are free: at most "
        f"{memory.fitting} of the {memory.clients} clients of a round fit at once"
    )


def _show_sizes(recipe: Recipe, federation: Federation) -> None:
    from fedmr_merge.federated.federation import describe_last_batches
    from fedmr_merge.federated.training.engines.description import describe_devices, describe_operations
    from fedmr_merge.federated.training.privacy import describe_privacy
    from fedmr_merge.recipe.prepare import parameters, stage_traffic

    sizes, privacy = federation.partition.sizes, federation.training.privacy
    console.say(f"{len(sizes)} clients with {min(sizes)} to {max(sizes)} examples")
    for line in filter(
        None, (describe_last_batches(federation), describe_devices(federation), describe_operations(federation))
    ):
        console.say(line)
    if privacy is not None:
        console.say(describe_privacy(privacy, federation.slots))
    console.say(f"{parameters(federation):,} parameters in {len(set(federation.layers.values()))} layers")
    if federation.device.type == "cuda":
        import torch

        from fedmr_merge.federated.training.gpu_memory import forecast_memory

        console.say(memory_line(forecast_memory(federation, torch.cuda.mem_get_info(federation.device)[0])))
    total_down = total_up = 0
    bound = ""
    for stage, traffic in stage_traffic(recipe, federation):
        down, up = console.size(traffic.down), console.size(traffic.up)
        console.say(f"{stage.name}: {down} sent to the clients in a round, {up} sent back")
        bound = " at most" if stage.length.until else bound
        total_down += traffic.down * stage.length.rounds
        total_up += traffic.up * stage.length.rounds
    down, up = console.size(total_down), console.size(total_up)
    console.say(f"{console.plural(recipe.rounds, 'round')}{bound}: {down} sent to the clients, {up} sent back")
