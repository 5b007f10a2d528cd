"""Prepare a recombination: open the models, check that they match, group their tensors, draw the plan, lay out the
outputs. Reads headers only, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from fedmr_merge.checkpoint.matching import match_checkpoints
from fedmr_merge.checkpoint.open import Checkpoint
from fedmr_merge.checkpoint.output import OutputModel
from fedmr_merge.checkpoint.tensor_table import TensorEntry
from fedmr_merge.checkpoint.writer import Progress, refuse_unwritable
from fedmr_merge.errors import PlanError
from fedmr_merge.hub.inputs import open_inputs, refuse_inside, refuse_twice
from fedmr_merge.layers.groups import pin_groups, tie_groups
from fedmr_merge.layers.plan import LayerGroup, RecombinationPlan, draw_plan
from fedmr_merge.layers.rules import Grouping, compared_files
from fedmr_merge.lineage.parents import recorded_place
from fedmr_merge.lineage.writer import HASHED_AT_ONCE_BYTES
from fedmr_merge.merging.adapters import refuse_other_scales
from fedmr_merge.merging.average import check_mean, mean_layout
from fedmr_merge.recombination.grouping import group_checkpoints
from fedmr_merge.recombination.options import OutputOptions, PlanOptions

#: Measured: Python with what a recombination imports, and what each name adds to that, once and for each model, and
#: each weight file.
_INTERPRETER_BYTES = 50 * 10**6
_BYTES_PER_NAME = 1100
_BYTES_PER_LISTED_TENSOR = 70
_BYTES_PER_FILE = 2500


def slot_name(slot: int, slots: int) -> str:
    """Return `slot-00`, with as many digits as all slots need."""
    return f"slot-{slot:0{max(2, len(str(slots - 1)))}d}"


@dataclass(frozen=True)
class PreparedRecombination:
    """A recombination that is planned and checked, and not yet written. Nothing but headers has been read."""

    parents: tuple[Checkpoint, ...]  #: the inputs, slot by slot
    out: Path
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
        written = range(len(self.parents)) if self.output.slots is None else self.output.slots
        shared = self.output.sidecars_from
        return {
            slot: self.output.layout.plan(
                self.parents[slot], self.sources(slot), self.parents[slot if shared is None else shared]
            )
            for slot in written
        }

    @cached_property
    def mean(self) -> OutputModel | None:
        """The global model to write, laid out like slot 0."""
        if self.output.mean is None:
            return None
        return mean_layout(self.parents[0], self.output.mean, self.output.layout.max_shard_bytes)

    @property
    def hashes(self) -> bool:
        """Whether tensors are hashed while they are written; `verify` hashes those that are not."""
        return self.nbytes <= HASHED_AT_ONCE_BYTES if self.output.hash is None else self.output.hash

    @property
    def nbytes(self) -> int:
        """Bytes of weights that will be written: the models and their mean."""
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
        per_name = _BYTES_PER_NAME + len(self.parents) * _BYTES_PER_LISTED_TENSOR
        files = sum(len(parent.files) for parent in self.parents)
        listed = len(self.parents[0].tensors) * per_name + files * _BYTES_PER_FILE
        return _INTERPRETER_BYTES + listed + (self.output.mean.buffer_bytes if self.output.mean else 0)

    def name(self, slot: int) -> str:
        """Return the name of an output slot."""
        return slot_name(slot, len(self.parents))


class _Moved(Mapping[str, TensorEntry]):
    """The tensors of one output model, each where its source has it. Looked up on demand, since they can be many."""

    def __init__(self, work: PreparedRecombination, destination: int) -> None:
        self._tables = [parent.tensors for parent in work.parents]
        self._group_of, self._permutations = work.grouping.group_of, work.plan.permutations
        self._destination = destination

    def __getitem__(self, name: str) -> TensorEntry:
        return self._tables[self._permutations[self._group_of[name]][self._destination]][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._group_of)

    def __len__(self) -> int:
        return len(self._group_of)


def prepare_recombination(
    checkpoints: Sequence[str | Path | Checkpoint],
    out: str | Path,
    options: PlanOptions | None = None,
    output: OutputOptions | None = None,
    *,
    distinct: bool = False,
    headers_only: bool = False,
    progress: Progress | None = None,
) -> PreparedRecombination:
    """Plan a recombination of K checkpoints and check everything that can be checked before a byte is written.

    An output that exists is refused first. Where models are on the Hub everything is planned and checked by their
    headers before they are fetched; with `headers_only` they are not fetched: the result can be looked at, not
    written. With `distinct` a model that is named twice is refused.

    Raises CheckpointError, HubError, LayerMismatchError, RuleError, PlanError or OutputError.
    """
    options, output, out = options or PlanOptions(), output or OutputOptions(), Path(out)
    refuse_unwritable(out)

    def prepare(parents: tuple[Checkpoint, ...]) -> PreparedRecombination:
        if distinct:
            refuse_twice(parents)
        work = _plan(parents, out, options, output)
        _check(work)
        return work

    configs = compared_files(options.rule)
    return prepare(open_inputs(checkpoints, prepare, headers_only=headers_only, configs=configs, progress=progress))


def _plan(
    parents: tuple[Checkpoint, ...], out: Path, options: PlanOptions, output: OutputOptions
) -> PreparedRecombination:
    match_checkpoints(parents, ignore_config=options.ignore_config)
    grouping = group_checkpoints(parents, options.rule, options.ignore_config, ties=options.ties)
    if options.plan is not None:
        # A plan that was made with the weights at hand knows which of them are tied.
        known = [tie for tie in grouping.perhaps_tied if not _is_apart(tie, grouping, options.plan)]
        grouping = replace(grouping, groups=tie_groups(grouping.groups, known))
    groups = pin_groups(grouping.groups, options.pin)
    plan = options.plan or _draw(groups, len(parents), options)
    plan.check(groups, len(parents))
    return PreparedRecombination(parents, out, replace(grouping, groups=groups), plan, options, output)


def _is_apart(tie: Sequence[str], grouping: Grouping, plan: RecombinationPlan) -> bool:
    return all(grouping.group_of[name] in plan.permutations for name in tie)


def _draw(groups: Sequence[LayerGroup], slots: int, options: PlanOptions) -> RecombinationPlan:
    if options.rounds < 1:
        raise PlanError(f"rounds must be 1 or more, found {options.rounds}")
    plan = None
    for round in range(options.round, options.round + options.rounds):  # one draw at a time: groups can be many
        drawn = draw_plan(groups, slots, seed=options.seed, round=round, probability=options.probability)
        plan = plan.compose(drawn) if plan else drawn
    assert plan is not None
    return plan


def _check(work: PreparedRecombination) -> None:
    """Raise an error for models that cannot be written as asked for, or not there. Nothing is written."""
    _check_slots(work.output, work.parents)
    refuse_other_scales(work.parents)
    if work.output.mean is not None:
        check_mean(work.parents, work.output.mean)
    _ = work.mean  # refuses what cannot be sharded
    for slot, model in work.models.items():
        if work.output.sidecars_from is not None and not model.is_folder:
            raise PlanError(
                f"slot {slot}, {work.parents[slot].location}, is a bare file and gets no config or tokenizer",
                hint="put it into a folder of its own as model.safetensors, or leave it out with --slots",
                slot=slot,
            )
    for parent in work.parents:
        recorded_place(parent, work.out)
    refuse_inside(work.out, work.parents, "-o")
    work.output.layout.check(work)


def _check_slots(output: OutputOptions, parents: Sequence[Checkpoint]) -> None:
    slots = len(parents)
    named = (*(output.slots or ()), *(() if output.sidecars_from is None else (output.sidecars_from,)))
    for slot in named:
        if not 0 <= slot < slots:
            raise PlanError(
                f"there is no slot {slot}", hint=f"the {slots} models are the slots 0 to {slots - 1}", slot=slot
            )
    if output.slots is not None and (not output.slots or len(set(output.slots)) < len(output.slots)):
        raise PlanError(
            f"name each output slot once, found {list(output.slots)}",
            hint=f"the {slots} models are the slots 0 to {slots - 1}; for all of them name none",
        )
    if output.sidecars_from is not None and not parents[output.sidecars_from].is_folder:
        raise PlanError(
            f"slot {output.sidecars_from}, {parents[output.sidecars_from].location}, is a file and has no config or "
            "tokenizer for the others",
            hint="take them from a slot whose model is a folder",
            slot=output.sidecars_from,
        )
