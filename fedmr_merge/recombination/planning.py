"""Plan a recombination of checkpoints: open them, check that they match, group their tensors, draw the plan.

Reads headers only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from fedmr_merge.checkpoint.matching import match_checkpoints
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.output import ADAPTER, OutputFile, OutputModel, base_name, lay_out
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.checkpoint.writer import Progress
from fedmr_merge.errors import PlanError
from fedmr_merge.hub.inputs import open_inputs
from fedmr_merge.layers.layer_rule import trainer_layers
from fedmr_merge.layers.plan import LayerGroup, RecombinationPlan, draw_plan
from fedmr_merge.layers.rules import Grouping, apply_rule, compared_files, pin_groups, tie_groups
from fedmr_merge.layers.ties import find_ties
from fedmr_merge.merging.average import check_mean, mean_layout
from fedmr_merge.merging.options import MeanOptions

#: Measured: Python with what a recombination imports, and what each name adds to that, once and for each model, and
#: each weight file.
_INTERPRETER_BYTES = 50 * 10**6
_BYTES_PER_NAME = 1100
_BYTES_PER_LISTED_TENSOR = 70
_BYTES_PER_FILE = 2500


def slot_name(slot: int, slots: int) -> str:
    """Return `slot-00`, with as many digits as all slots need."""
    return f"slot-{slot:0{max(2, len(str(slots - 1)))}d}"


HASHED_AT_ONCE_BYTES = 256 << 20


@dataclass(frozen=True)
class PlanOptions:
    """How the plan is drawn."""

    rule: str = "layer"
    seed: int = 0
    round: int = 1
    rounds: int = 1  #: draws that are composed into one
    probability: float = 1.0  #: with which a layer group is shuffled in a draw
    pin: tuple[str, ...] = ()  #: patterns of tensors whose groups stay in their slots
    plan: RecombinationPlan | None = None  #: execute this one instead of drawing one
    ignore_config: tuple[str, ...] = ()  #: keys of the configuration that may differ
    ties: bool = True  #: keep tied tensors together

    def __post_init__(self) -> None:
        """Raise PlanError where a plan is given and one is to be drawn."""
        if self.plan is not None and (self.seed, self.round, self.rounds, self.probability) != (0, 1, 1, 1.0):
            raise PlanError(
                "a given plan is executed as it is: seed, round, rounds and probability are of no use with it",
                hint="leave out one of them",
            )


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and how."""

    slots: tuple[int, ...] | None = None  #: the output slots to write; all if None
    mean: MeanOptions | None = field(default_factory=MeanOptions)  #: of the global model; none is written if None
    sidecars_from: int | None = None  #: slot whose config and tokenizer every output gets; each slot's own if None
    max_shard_bytes: int | None = None  #: shard anew; each slot's own files if None
    hash: bool | None = None  #: write every tensor's SHA-256 into the lineage; if None, where it is cheap
    require_finite: bool = False  #: refuse NaN and infinite numbers (met while the mean is taken)
    in_store: bool = False  #: link shards, one per layer group, from a store
    store: Path | None = None  #: the store's folder; `.fedmr-merge-store` beside the output if None


@dataclass(frozen=True)
class Recombination:
    """A recombination of checkpoints, planned and not yet executed. Nothing but headers has been read."""

    checkpoints: tuple[Checkpoint, ...]
    grouping: Grouping
    plan: RecombinationPlan
    options: PlanOptions
    output: OutputOptions = field(default_factory=OutputOptions)

    def sources(self, destination: int) -> Mapping[str, TensorEntry]:
        """Return, for every tensor of the model in slot `destination`, where its bytes come from."""
        return _Moved(self, destination)

    @cached_property
    def models(self) -> dict[int, OutputModel]:
        """Output slot → the model to write there."""
        written = range(len(self.checkpoints)) if self.output.slots is None else self.output.slots
        return {slot: self._model(slot) for slot in written}

    def _model(self, slot: int) -> OutputModel:
        donor = self.checkpoints[slot]
        shared = self.output.sidecars_from
        sidecars_from = donor if shared is None else self.checkpoints[shared]
        if self.output.in_store:
            if any(base_name(file.name) == ADAPTER for file in donor.files):
                raise PlanError(
                    f"{donor.source}: a PEFT adapter is loaded from one file, {ADAPTER}.safetensors, and not from a "
                    "store's shards",
                    hint="leave out --layout store",
                )
            # The store lays it out, in shards that are there already or about as large.
            files = tuple(OutputFile(file.name, file.header, self.sources(slot)) for file in donor.files)
            return OutputModel(files, True, sidecars_from)
        return lay_out(donor, self.sources(slot), sidecars_from, self.output.max_shard_bytes)

    @property
    def hashes(self) -> bool:
        """Whether tensors are hashed while they are written; `verify` does it for those that are not.

        A hash more than doubles the processor time of a copy in memory (docs/benchmarks.md): a fifth of a second for
        outputs of this size, and a price that who merges large models should choose to pay.
        """
        return self.nbytes <= HASHED_AT_ONCE_BYTES if self.output.hash is None else self.output.hash

    @cached_property
    def mean(self) -> OutputModel | None:
        """The global model to write, laid out like slot 0."""
        if self.output.mean is None:
            return None
        return mean_layout(self.checkpoints[0], self.output.mean, self.output.max_shard_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes that will be written: the models and their mean."""
        return sum(model.nbytes for model in (*self.models.values(), self.mean) if model)

    @property
    def bytes_to_write(self) -> int:
        """Bytes that will be written, config and tokenizer included."""
        return self.nbytes + self.sidecar_bytes

    @property
    def sidecar_bytes(self) -> int:
        """Bytes of everything that is not weights and will be written with them."""
        return sum(model.sidecar_bytes for model in (*self.models.values(), self.mean) if model)

    @property
    def peak_memory_bytes(self) -> int:
        """About as much memory as this takes at most: the interpreter, the lists of tensors, the mean's buffers."""
        of_name = _BYTES_PER_NAME + len(self.checkpoints) * _BYTES_PER_LISTED_TENSOR
        listed = (
            len(self.checkpoints[0].tensors) * of_name + sum(len(c.files) for c in self.checkpoints) * _BYTES_PER_FILE
        )
        return _INTERPRETER_BYTES + listed + (self.output.mean.buffer_bytes if self.output.mean else 0)

    def name(self, slot: int) -> str:
        """What an output slot is called."""
        return slot_name(slot, len(self.checkpoints))


class _Moved(Mapping[str, TensorEntry]):
    """The tensors of one output model, each where its source has it. Looked up when asked for: they can be many."""

    def __init__(self, work: Recombination, destination: int) -> None:
        self._tables = [checkpoint.tensors for checkpoint in work.checkpoints]
        self._group_of, self._permutations = work.grouping.group_of, work.plan.permutations
        self._destination = destination

    def __getitem__(self, name: str) -> TensorEntry:
        return self._tables[self._permutations[self._group_of[name]][self._destination]][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._group_of)

    def __len__(self) -> int:
        return len(self._group_of)


def plan_recombination(
    checkpoints: Sequence[str | Path | Checkpoint],
    options: PlanOptions | None = None,
    output: OutputOptions | None = None,
    *,
    check: Callable[[Recombination], object] = lambda _: None,
    headers_only: bool = False,
    progress: Progress | None = None,
) -> Recombination:
    """Open K checkpoints, check that they match, group their tensors and draw (or check) the plan.

    Where models are on the Hub all that is done by their headers first, `check` included, which raises what else
    should be refused before they are fetched. With `headers_only` they are not fetched: the plan can be looked at, not
    executed.

    Raises CheckpointError, HubError, LayerMismatchError, RuleError or PlanError.
    """
    options, output = options or PlanOptions(), output or OutputOptions()

    def plan(opened: tuple[Checkpoint, ...]) -> Recombination:
        work = _plan(opened, options, output)
        check(work)
        return work

    configs = compared_files(options.rule)
    return plan(open_inputs(checkpoints, plan, headers_only=headers_only, configs=configs, progress=progress))


def _plan(opened: tuple[Checkpoint, ...], options: PlanOptions, output: OutputOptions) -> Recombination:
    match_checkpoints(opened, ignore_config=options.ignore_config)
    grouping = group_checkpoints(opened, options.rule, options.ignore_config, ties=options.ties)
    if options.plan is not None:
        # A plan that was made with the weights at hand knows which of them are tied.
        known = [tie for tie in grouping.perhaps_tied if not _is_apart(tie, grouping, options.plan)]
        grouping = replace(grouping, groups=tie_groups(grouping.groups, known))
    groups = pin_groups(grouping.groups, options.pin)
    plan = options.plan or _draw(groups, len(opened), options)
    plan.check(groups, len(opened))
    _check_slots(output, opened)
    if output.mean is not None:
        check_mean(opened, output.mean)
    work = Recombination(opened, replace(grouping, groups=groups), plan, options, output)
    _check_layout(work)
    return work


def _is_apart(tie: Sequence[str], grouping: Grouping, plan: RecombinationPlan) -> bool:
    return all(grouping.group_of[name] in plan.permutations for name in tie)


def group_checkpoints(
    checkpoints: Sequence[Checkpoint], rule: str, ignore_config: Collection[str] = (), *, ties: bool = True
) -> Grouping:
    """Return the layer groups of matching checkpoints, tied tensors together unless `ties` is false.

    Raises RuleError or LayerMismatchError.
    """
    first = checkpoints[0]
    grouping = apply_rule(rule, first.shapes, trainer_layers(first))
    if grouping.require_equal and len(checkpoints) > 1:
        match_checkpoints(checkpoints, grouping.require_equal, ignore_config)
    if not ties:
        return grouping
    known, unknown = find_ties(checkpoints)
    tied = replace(grouping, groups=tie_groups(grouping.groups, known), tied=tuple(known))
    apart = (tie for tie in unknown if len({tied.group_of[name] for name in tie}) > 1)
    return replace(tied, perhaps_tied=tuple(apart)) if unknown else tied


def _draw(groups: Sequence[LayerGroup], slots: int, options: PlanOptions) -> RecombinationPlan:
    if options.rounds < 1:
        raise PlanError(f"rounds must be 1 or more, found {options.rounds}")
    plan = None
    for round in range(options.round, options.round + options.rounds):  # one draw at a time: groups can be many
        drawn = draw_plan(groups, slots, seed=options.seed, round=round, probability=options.probability)
        plan = plan.compose(drawn) if plan else drawn
    assert plan is not None
    return plan


def _check_slots(output: OutputOptions, checkpoints: Sequence[Checkpoint]) -> None:
    slots = len(checkpoints)
    named = (*(output.slots or ()), *(() if output.sidecars_from is None else (output.sidecars_from,)))
    for slot in named:
        if not 0 <= slot < slots:
            raise PlanError(f"there is no slot {slot}", hint=f"the {slots} models are the slots 0 to {slots - 1}")
    if output.slots is not None and (not output.slots or len(set(output.slots)) < len(output.slots)):
        raise PlanError(
            f"name each output slot once, found {list(output.slots)}",
            hint=f"the {slots} models are the slots 0 to {slots - 1}; for all of them name none",
        )
    if output.sidecars_from is not None and not checkpoints[output.sidecars_from].is_folder:
        raise PlanError(
            f"slot {output.sidecars_from}, {checkpoints[output.sidecars_from].source}, is a file and has no config or "
            "tokenizer for the others",
            hint="take them from a slot whose model is a folder",
        )


def _check_layout(work: Recombination) -> None:
    """Raise PlanError for models that cannot be written as asked for."""
    _ = work.mean  # refuses what cannot be sharded
    for slot, model in work.models.items():
        if work.output.sidecars_from is not None and not model.is_folder:
            raise PlanError(
                f"slot {slot}, {work.checkpoints[slot].source}, is a bare file and gets no config or tokenizer",
                hint="put it into a folder of its own as model.safetensors, or leave it out with --slots",
            )
