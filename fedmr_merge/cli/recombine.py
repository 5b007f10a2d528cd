"""The command `recombine`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedmr_merge.cli import console, progress
from fedmr_merge.cli.arguments import (
    Accumulate,
    Checkpoints,
    IgnoreConfig,
    MaxMemory,
    MaxShard,
    NoTies,
    Out,
    OutDtype,
    RequireFinite,
    Rule,
    UsageError,
    Weights,
    expand,
    fetching,
    mean_options,
    size_in_bytes,
    slot_numbers,
    warn_adapters,
    warn_left_out,
    warn_mean,
)
from fedmr_merge.cli.help import App

if TYPE_CHECKING:
    from fedmr_merge.layers.plan import RecombinationPlan
    from fedmr_merge.recombination.options import OutputOptions, PlanOptions
    from fedmr_merge.recombination.prepare import PreparedRecombination
    from fedmr_merge.recombination.recombine import Outcome

_PLAN, _OUTPUT = "Plan", "Output"
Seed = Annotated[int, typer.Option(min=0, help="Seed of the draw.", rich_help_panel=_PLAN)]
Round = Annotated[int, typer.Option(min=1, help="Number of the round; each round draws anew.", rich_help_panel=_PLAN)]
Rounds = Annotated[int, typer.Option(min=1, help="Compose this many draws into one copy.", rich_help_panel=_PLAN)]
Probability = Annotated[
    float,
    typer.Option(
        help="Probability of shuffling each layer group; otherwise it stays in its slot.", rich_help_panel=_PLAN
    ),
]
Pin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN", help="Pattern of tensors that stay in their slots; repeatable.", rich_help_panel=_PLAN
    ),
]
Plan = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Execute the plan of this JSON file, or of a lineage.json, instead of drawing one.",
        rich_help_panel=_PLAN,
    ),
]
SavePlan = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="With --dry-run: write the plan to this JSON file, for --plan; the file must not exist.",
        rich_help_panel=_PLAN,
    ),
]
Slots = Annotated[
    str | None, typer.Option(metavar="0,2", help="Write only these output slots.", rich_help_panel=_OUTPUT)
]
SidecarsFrom = Annotated[
    int | None,
    typer.Option(metavar="SLOT", help="Slot whose config and tokenizer all outputs get.", rich_help_panel=_OUTPUT),
]
Layout = Annotated[
    Literal["same", "store"],
    typer.Option(help="same: laid out as the inputs are; store: links into a common store.", rich_help_panel=_OUTPUT),
]
Store = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="The store of --layout store; by default beside the output.", rich_help_panel=_OUTPUT
    ),
]
Hash = Annotated[
    bool | None,
    typer.Option(
        "--hash/--no-hash",
        help="Write the SHA-256 of every tensor into the lineage. By default up to 256 MiB; "
        "`verify` adds the hashes of larger outputs.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
NoGlobal = Annotated[bool, typer.Option("--no-global", help="Do not write the mean.", rich_help_panel="Mean")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan and what it takes; write nothing.", rich_help_panel=_OUTPUT)
]


def register(app: App) -> None:
    """Add the command."""
    app.command(rich_help_panel="Merge checkpoints")(recombine)


def recombine(
    context: typer.Context,
    checkpoints: Checkpoints,
    out: Out = Path("recombined"),
    rule: Rule = "layer",
    seed: Seed = 0,
    round: Round = 1,
    rounds: Rounds = 1,
    probability: Probability = 1.0,
    pin: Pin = None,
    plan: Plan = None,
    save_plan: SavePlan = None,
    no_ties: NoTies = False,
    ignore_config: IgnoreConfig = None,
    slots: Slots = None,
    sidecars_from: SidecarsFrom = None,
    max_shard_size: MaxShard = None,
    layout: Layout = "same",
    store: Store = None,
    hash: Hash = None,
    dry_run: DryRun = False,
    no_global: NoGlobal = False,
    weights: Weights = None,
    accumulate: Accumulate = "float32",
    out_dtype: OutDtype = None,
    max_memory: MaxMemory = None,
    require_finite: RequireFinite = False,
) -> None:
    """Recombine K checkpoints into K new ones, byte-exact, and their mean.

    Each layer group is shuffled across the models, so that every layer of every model lives on in one and only one new
    model. OUT gets one model per slot, the mean in OUT/global, and OUT/lineage.json with the origin of every tensor.

    Example: fedmr-merge recombine a.safetensors b.safetensors c.safetensors -o recombined --seed 1
    """
    from fedmr_merge.recombination.layouts.files import FilesLayout
    from fedmr_merge.recombination.layouts.store import StoreLayout
    from fedmr_merge.recombination.options import OutputOptions, PlanOptions

    _refuse_contradictions(context)
    mean = None if no_global else mean_options(weights, accumulate, out_dtype, max_memory)
    pins, ignored = tuple(pin or ()), tuple(ignore_config or ())
    given = _read_plan(plan)
    drawing = PlanOptions(rule, seed, round, rounds, probability, pins, given, ignored, ties=not no_ties)
    writing = OutputOptions(
        slots=slot_numbers("--slots", slots),
        mean=mean,
        sidecars_from=sidecars_from,
        hash=hash,
        require_finite=require_finite,
        layout=StoreLayout(store)
        if layout == "store"
        else FilesLayout(size_in_bytes("--max-shard-size", max_shard_size)),
    )
    work = _prepare(expand(checkpoints), out, drawing, writing, headers_only=dry_run)
    if dry_run:
        _dry_run(work, save_plan)
    else:
        _write(work)


def _prepare(
    inputs: list[str], out: Path, drawing: PlanOptions, writing: OutputOptions, *, headers_only: bool
) -> PreparedRecombination:
    from fedmr_merge.cli.groups import show_warnings
    from fedmr_merge.recombination.prepare import prepare_recombination

    with fetching(inputs) as done:
        work = prepare_recombination(
            inputs, out, drawing, writing, distinct=True, headers_only=headers_only, progress=done
        )
    warn_left_out(work.parents)
    if work.output.mean is not None:
        warn_adapters(work.parents)
    show_warnings(work.grouping)
    return work


def _refuse_contradictions(context: typer.Context) -> None:
    """Raise UsageError for an option that another one makes useless: no option is ignored."""

    def given(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    def refuse(names: tuple[str, ...], reason: str) -> None:
        for name in filter(given, names):
            raise UsageError(f"--{name.replace('_', '-')} {reason}", hint="leave out one of them")

    options = context.params
    if options["layout"] == "store":
        refuse(("max_shard_size",), "has no effect with --layout store, where each shard is a layer group")
        if options["hash"] is False:
            raise UsageError(
                "--no-hash has no effect with --layout store, where shards are named by their hashes",
                hint="leave out one of them",
            )
    elif given("store"):
        raise UsageError("--store has no effect without --layout store", hint="add --layout store")
    if given("save_plan") and not options["dry_run"]:
        raise UsageError(
            "--save-plan has no effect without --dry-run", hint="a recombination keeps its plan in OUT/lineage.json"
        )
    if given("plan"):
        drawn = ("seed", "round", "rounds", "probability")
        refuse(drawn, "concerns the draw and has no effect with --plan, which is executed as it is")
    if options["no_global"]:
        of_the_mean = ("weights", "accumulate", "out_dtype", "max_memory", "require_finite")
        refuse(of_the_mean, "concerns the mean and has no effect with --no-global")


def _read_plan(path: Path | None) -> RecombinationPlan | None:
    from fedmr_merge.errors import PlanError
    from fedmr_merge.lineage.reader import read_plan

    try:
        return None if path is None else read_plan(path)
    except PlanError as error:
        raise PlanError(f"--plan {error}", hint=error.hint, slot=error.slot, group=error.group) from error


def _dry_run(work: PreparedRecombination, save_plan: Path | None) -> None:
    from fedmr_merge.cli.plan_view import save_plan_file, show_plan

    if save_plan is not None:
        save_plan_file(work, save_plan)
    show_plan(work)
    console.say("dry run: nothing was written" + (f" but the plan, {save_plan}" if save_plan else ""))


def _write(work: PreparedRecombination) -> None:
    from fedmr_merge.recombination.recombine import write_recombination

    with progress.bytes_progress("recombining", work.nbytes) as done:
        outcome = write_recombination(work, progress=done)
    warn_mean(work.parents, outcome.not_finite, outcome.differing_integers)
    groups = work.grouping.groups
    console.say(
        f"recombined {console.plural(len(work.parents), 'model')} by rule {work.grouping.rule}: "
        f"{console.plural(len(groups), 'layer group')} ({work.grouping.found}), "
        f"{work.plan.moved} of {len(groups) * work.plan.slots} moved"
    )
    _show_output(work, outcome)
    quoted = shlex.quote(str(work.out))
    pushing = f"   or   fedmr-merge push {quoted} ORG/NAME --dry-run" if work.mean is not None else ""
    console.say(f"next: fedmr-merge verify {quoted}{pushing}")


def _show_output(work: PreparedRecombination, outcome: Outcome) -> None:
    out = work.out
    if (report := outcome.store) is not None:
        console.say(f"  store     {report.store}: {report.linked} shards linked, {report.copied_in} copied in")
        if report.copied_instead:
            console.complain(
                "warning", f"{report.copied_instead} shards were copied, as no link can be made: {report.reason}"
            )
    for slot, model in work.models.items():
        console.say(f"  slot {slot:<4} {model.path(out, work.name(slot))}")
    if work.mean is not None:
        console.say(f"  mean      {out / 'global'}")
    console.say(f"  lineage   {out / 'lineage.json'}")
