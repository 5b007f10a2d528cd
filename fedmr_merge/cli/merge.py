"""Commands that work on checkpoints: recombine, average, inspect."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmr_merge.cli import console
from fedmr_merge.cli.arguments import (
    Checkpoints,
    Out,
    Rule,
    UsageError,
    expand,
    fetching,
    numbers,
    open_one,
    size_in_bytes,
    slot_numbers,
    warn_left_out,
)
from fedmr_merge.cli.groups import perhaps_tied, show_groups, show_ties, show_warnings
from fedmr_merge.errors import PlanError

if TYPE_CHECKING:
    from fedmr_merge.checkpoint.open import Checkpoint
    from fedmr_merge.layers.plan import RecombinationPlan
    from fedmr_merge.merging.options import MeanOptions, NotFinite
    from fedmr_merge.recombination.prepare import PreparedRecombination

Weights = Annotated[str | None, typer.Option(help="Weights of the models in the mean, e.g. 0.5,0.25,0.25.")]
Accumulate = Annotated[str, typer.Option(help="What the mean is added up in: float32 or float64.")]
OutDtype = Annotated[
    str | None, typer.Option(help="Dtype of the mean's floats, e.g. BF16; as the inputs' if not given.")
]
MaxMemory = Annotated[str | None, typer.Option(help="Bound on the memory while the mean is taken, e.g. 1GB.")]
MaxShard = Annotated[str | None, typer.Option("--max-shard-size", help="Shard the outputs anew, e.g. 5GB.")]
IgnoreConfig = Annotated[
    list[str] | None, typer.Option("--ignore-config", help="Key of the configuration that may differ; repeatable.")
]
NoTies = Annotated[
    bool,
    typer.Option("--no-ties", help="Let tied tensors (an input embedding and its output head) move apart."),
]
RequireFinite = Annotated[
    bool, typer.Option("--require-finite", help="Refuse NaN and infinite numbers, met as the mean is taken.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(recombine)
    app.command()(average)
    app.command()(inspect)
    app.command()(plan)


def recombine(
    context: typer.Context,
    checkpoints: Checkpoints,
    out: Out = Path("recombined"),
    rule: Rule = "layer",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    round: Annotated[int, typer.Option("--round", min=1, help="Number of the round; each round draws anew.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Compose this many draws into one copy.")] = 1,
    probability: Annotated[float, typer.Option(help="With which a layer group is shuffled, else it stays.")] = 1.0,
    pin: Annotated[
        list[str] | None, typer.Option(help="Pattern of tensors that stay in their slots; repeatable.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Execute the plan of this JSON file (or of a lineage.json); draw none.")
    ] = None,
    no_ties: NoTies = False,
    ignore_config: IgnoreConfig = None,
    slots: Annotated[str | None, typer.Option(help="Write only these output slots, e.g. 0,2.")] = None,
    weights: Weights = None,
    accumulate: Accumulate = "float32",
    out_dtype: OutDtype = None,
    max_memory: MaxMemory = None,
    no_global: Annotated[bool, typer.Option("--no-global", help="Do not write the mean.")] = False,
    sidecars_from: Annotated[int | None, typer.Option(help="Slot whose config and tokenizer all outputs get.")] = None,
    max_shard_size: MaxShard = None,
    layout: Annotated[str, typer.Option(help="same (as the inputs) or store (links into a common store).")] = "same",
    store: Annotated[
        Path | None, typer.Option(help="The store of --layout store; beside the output if not given.")
    ] = None,
    hash: Annotated[
        bool | None,
        typer.Option(
            "--hash/--no-hash",
            help="Write every tensor's SHA-256 into the lineage; if not said, up to 256 MiB (verify adds larger ones).",
            show_default=False,
        ),
    ] = None,
    require_finite: RequireFinite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and what it takes; write nothing.")] = False,
    save_plan: Annotated[
        Path | None, typer.Option(help="With --dry-run: write the plan to this JSON file, for --plan; must not exist.")
    ] = None,
) -> None:
    """Recombine K checkpoints into K new ones.

    Byte-exact, with their mean. Each layer group is shuffled across the models, so that every layer of every model
    lives on in one and only one new model. OUT gets one model per slot, the mean in OUT/global, and OUT/lineage.json
    with the origin of every tensor.
    """
    from fedmr_merge.hub.inputs import refuse_inside
    from fedmr_merge.recombination.layouts.files import FilesLayout
    from fedmr_merge.recombination.layouts.store import StoreLayout
    from fedmr_merge.recombination.options import OutputOptions, PlanOptions
    from fedmr_merge.recombination.prepare import prepare_recombination
    from fedmr_merge.recombination.recombine import write_recombination

    if layout not in ("same", "store"):
        raise PlanError(
            f"--layout is same or store, found {layout!r}",
            hint="same: outputs laid out as the inputs; store: links into a common store",
        )
    if store is not None and layout != "store":
        raise UsageError("--store is of no use without --layout store", hint="add --layout store")
    if save_plan is not None and not dry_run:
        raise UsageError(
            "--save-plan is of no use without --dry-run", hint="a recombination keeps its plan in OUT/lineage.json"
        )
    if layout == "store":
        _refuse_in_store(max_shard_size, hash)
    if plan is not None:
        _refuse_draw(context)
    mean = _mean_options(weights, accumulate, out_dtype, max_memory)
    if no_global:
        _refuse_without_mean(mean, require_finite)
    drawing = PlanOptions(
        rule,
        seed,
        round,
        rounds,
        probability,
        tuple(pin or ()),
        _read_plan(plan),
        tuple(ignore_config or ()),
        ties=not no_ties,
    )
    writing = OutputOptions(
        slots=slot_numbers("--slots", slots),
        mean=None if no_global else mean,
        sidecars_from=sidecars_from,
        hash=hash,
        require_finite=require_finite,
        layout=StoreLayout(store)
        if layout == "store"
        else FilesLayout(size_in_bytes("--max-shard-size", max_shard_size)),
    )
    with fetching(inputs := expand(checkpoints)) as progress:
        work = prepare_recombination(
            inputs, out, drawing, writing, distinct=True, headers_only=dry_run, progress=progress
        )
    warn_left_out(work.parents)
    show_warnings(work.grouping)
    if dry_run:
        if save_plan is not None:
            _refuse_provisional(work)
            refuse_inside(save_plan, work.parents, "--save-plan")
            _save_plan(work.plan, save_plan)
        _show_plan(work)
        console.say("dry run: nothing was written" + (f" but the plan, {save_plan}" if save_plan else ""))
        return
    with console.bytes_progress("recombining", work.nbytes) as progress:
        outcome = write_recombination(work, progress=progress)
    _warn_not_finite(work.parents, outcome.not_finite)
    groups = work.grouping.groups
    console.say(
        f"recombined {console.plural(len(work.parents), 'model')} by rule {work.grouping.rule}: "
        f"{console.plural(len(groups), 'layer group')} ({work.grouping.found}), "
        f"{work.plan.moved} of {len(groups) * work.plan.slots} moved"
    )
    if outcome.store is not None:
        report = outcome.store
        console.say(f"  store     {report.store}: {report.linked} shards linked, {report.copied_in} copied in")
        if report.copied_instead:
            console.complain(
                "warning", f"{report.copied_instead} shards were copied, no link can be made: {report.reason}"
            )
    for slot, model in work.models.items():
        console.say(f"  slot {slot:<4} {model.path(out, work.name(slot))}")
    if work.mean is not None:
        console.say(f"  mean      {out / 'global'}")
    console.say(f"  lineage   {out / 'lineage.json'}")
    quoted = shlex.quote(str(out))
    pushing = "" if no_global else f"   or   fedmr-merge push {quoted} ORG/NAME --dry-run"
    console.say(f"next: fedmr-merge verify {quoted}{pushing}")


def _read_plan(path: Path | None) -> RecombinationPlan | None:
    from fedmr_merge.checkpoint.json_reader import named_once
    from fedmr_merge.layers.plan import RecombinationPlan

    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=named_once)
        return RecombinationPlan.from_json(content.get("plan", content) if isinstance(content, dict) else content)
    except (OSError, ValueError, RecursionError, PlanError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "strerror", None) or error
        raise PlanError(
            f"--plan {path}: {reason}", hint="name a plan, or the lineage.json that `fedmr-merge recombine` wrote"
        ) from error


def _mean_options(weights: str | None, accumulate: str, out_dtype: str | None, max_memory: str | None) -> MeanOptions:
    import os

    from fedmr_merge.merging.options import MeanOptions

    # numpy's linear algebra is not used here; starting its threads would cost more than a small merge.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if accumulate not in ("float32", "float64"):
        raise PlanError(
            f"--accumulate is float32 or float64, found {accumulate!r}",
            hint="it is float32 if not given; float64 is more exact and takes longer",
        )
    return MeanOptions(
        weights=numbers("--weights", weights),
        double=accumulate == "float64",
        out_dtype=out_dtype.upper() if out_dtype else None,
        max_memory_bytes=size_in_bytes("--max-memory", max_memory),
    )


def _refuse_draw(context: typer.Context) -> None:
    """What is drawn by these options is there already where a plan is given."""
    for name in ("seed", "round", "rounds", "probability"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(
                f"--{name} concerns the draw and is of no use with --plan, which is executed as it is",
                hint="leave out one of them",
            )


def _refuse_in_store(max_shard_size: str | None, hash: bool | None) -> None:
    """What the store's layout decides by itself."""
    if max_shard_size is not None:
        raise UsageError(
            "--max-shard-size is of no use with --layout store, where each shard is a layer group",
            hint="leave out one of them",
        )
    if hash is False:
        raise UsageError(
            "--no-hash is of no use with --layout store, where shards are named by their hashes",
            hint="leave out one of them",
        )


def _refuse_without_mean(options: MeanOptions, require_finite: bool) -> None:
    """No option is ignored: what concerns the mean makes no sense without one."""
    asked = {
        "--weights": options.weights is not None,
        "--accumulate": options.double,
        "--out-dtype": options.out_dtype is not None,
        "--max-memory": options.max_memory_bytes is not None,
        "--require-finite": require_finite,
    }
    for option, given in asked.items():
        if given:
            raise UsageError(
                f"{option} concerns the mean and is of no use with --no-global", hint="leave out one of them"
            )


def _show_plan(work: PreparedRecombination) -> None:
    from fedmr_merge.recombination.layouts.files import free_bytes

    rows = [
        [
            group.name + (" (pinned)" if group.pinned else ""),
            str(len(group.tensors)),
            " ".join(map(str, work.plan.permutations[group.name])),
        ]
        for group in work.grouping.groups
    ]
    console.say(f"rule {work.grouping.rule}: {work.grouping.found}")
    console.table(("layer group", "tensors", "source slot of slot 0, 1, …"), rows, right=("tensors",))
    show_ties(work.grouping)
    forecast = work.output.layout.forecast(work)
    if (shards := forecast.shards) is not None:
        more = f", {console.size(forecast.shard_bytes)}, less what it holds already" if shards.copied_in else ""
        linked = f"{shards.linked} shards to link, {shards.copied_in} of them to copy in"
        console.say(f"store {shards.store}: {linked}{more}")
    console.say(
        f"to write {console.size(forecast.nbytes)} to {forecast.place}, free {console.size(free_bytes(work.out))}; "
        f"peak memory about {console.size(work.peak_memory_bytes)}"
    )


def _refuse_provisional(work: PreparedRecombination) -> None:
    """A plan is not kept before it is known which tensors are tied: it would not fit the models."""
    if work.grouping.perhaps_tied:
        raise PlanError(
            f"the plan is not final: {perhaps_tied(work.grouping)}",
            hint="recombine once without --dry-run: its plan stands in OUT/lineage.json, for --plan",
        )


def _save_plan(plan: RecombinationPlan, path: Path) -> None:
    from fedmr_merge.checkpoint.writer import dumps, staged_output

    content = plan.to_json()
    groups = ",\n".join(f"  {dumps(group)}: {dumps(sources)}" for group, sources in content["permutations"].items())
    with staged_output(path) as staging:  # a line for each group, to be read and changed by people
        staging.write_text(
            f'{{"format_version": {content["format_version"]}, "slots": {content["slots"]}, "permutations": '
            f"{{\n{groups}\n}}}}\n",
            encoding="utf-8",
        )


def _warn_not_finite(checkpoints: Sequence[Checkpoint], found: Sequence[NotFinite]) -> None:
    for item in found[:3]:
        console.complain("warning", ": ".join(item.told([checkpoint.source for checkpoint in checkpoints])))
    if len(found) > 3:
        console.complain("warning", f"and {len(found) - 3} more tensors with NaN or infinite numbers")


def average(
    checkpoints: Checkpoints,
    out: Out = Path("average"),
    weights: Weights = None,
    accumulate: Accumulate = "float32",
    out_dtype: OutDtype = None,
    max_memory: MaxMemory = None,
    max_shard_size: MaxShard = None,
    ignore_config: IgnoreConfig = None,
    require_finite: RequireFinite = False,
) -> None:
    """Average K checkpoints into one.

    OUT becomes a folder with model.safetensors, or with shards as the first input has them; named ….safetensors, the
    one file where the mean is one.
    """
    from fedmr_merge.checkpoint.writer import refuse_existing
    from fedmr_merge.hub.inputs import open_inputs, refuse_twice
    from fedmr_merge.merging.average import average as take_average
    from fedmr_merge.merging.average import plan_mean

    refuse_existing(out)
    options = _mean_options(weights, accumulate, out_dtype, max_memory)
    max_shard_bytes = size_in_bytes("--max-shard-size", max_shard_size)

    def check(opened: Sequence[Checkpoint]) -> None:
        refuse_twice(opened)
        plan_mean(opened, out, options, max_shard_bytes, ignore_config or ())

    with fetching(inputs := expand(checkpoints)) as progress:
        opened = open_inputs(inputs, check, progress=progress)
    refuse_twice(opened)
    warn_left_out(opened)
    with console.bytes_progress("averaging", opened[0].nbytes if opened else 0) as progress:
        found = take_average(
            opened,
            out,
            options=options,
            require_finite=require_finite,
            max_shard_bytes=max_shard_bytes,
            ignore_config=ignore_config or (),
            progress=progress,
        )
    _warn_not_finite(opened, found)
    console.say(f"averaged {console.plural(len(opened), 'model')} into {out}")
    quoted = shlex.quote(str(out))
    console.say(f"next: fedmr-merge inspect {quoted}   or   fedmr-merge push {quoted} ORG/NAME --dry-run")


def inspect(checkpoint: Annotated[str, typer.Argument(help="A checkpoint.")], rule: Rule = "layer") -> None:
    """Show the layer groups of a checkpoint.

    With their tensors, parameters, bytes and dtypes, and how they were found.
    """
    from fedmr_merge.recombination.inspect import inspect as look

    found = look(open_one(checkpoint), rule)
    show_groups(found.checkpoint, found.grouping)


def plan(
    checkpoints: Checkpoints, rule: Rule = "layer", no_ties: NoTies = False, ignore_config: IgnoreConfig = None
) -> None:
    """Tell whether models can be recombined.

    From their headers and configurations alone: of models on the Hub no weights are fetched. Shows the models and their
    layer groups, or everything that does not match.
    """
    from fedmr_merge.checkpoint.matching import match_checkpoints
    from fedmr_merge.hub.inputs import open_inputs, refuse_twice
    from fedmr_merge.layers.rules import compared_files
    from fedmr_merge.recombination.prepare import group_checkpoints

    named = expand(checkpoints)
    opened = open_inputs(named, headers_only=True, configs=compared_files(rule))
    refuse_twice(opened)
    match_checkpoints(opened, ignore_config=ignore_config or ())
    warn_left_out(opened)
    grouping = group_checkpoints(opened, rule, ignore_config or (), ties=not no_ties)
    rows = [
        [str(slot), found.source, console.size(found.nbytes), str(len(found.files)), found.licence or ""]
        for slot, found in enumerate(opened)
    ]
    console.table(("slot", "model", "size", "files", "licence"), rows, right=("slot", "size", "files"))
    show_groups(opened[0], grouping)
    remote = sum(found.nbytes for found in opened if found.is_remote)
    if remote:
        console.say(f"to fetch from the Hub: {console.size(remote)}, less what is in the cache")
    options = [] if rule == "layer" else ["--rule", rule]
    options += ["--no-ties"] if no_ties else []
    options += [part for key in ignore_config or () for part in ("--ignore-config", key)]
    console.say(f"next: fedmr-merge recombine {shlex.join([*named, *options])}")
