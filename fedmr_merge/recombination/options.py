"""What is asked of a recombination: how its plan is drawn, and what is written."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedmr_merge.errors import PlanError, shown
from fedmr_merge.layers.plan import RecombinationPlan
from fedmr_merge.merging.options import MeanOptions
from fedmr_merge.plain_values import number, strings, whole
from fedmr_merge.recombination.layouts.base import Layout
from fedmr_merge.recombination.layouts.files import FilesLayout


@dataclass(frozen=True)
class PlanOptions:
    """How the plan of a recombination is drawn.

    Args:
        rule: the layer rule: `layer`, `module`, `tensor`, `block`, `segments:N`, `model`, `auto` … or a rule file.
        seed: the seed of the draw.
        round: the number of the round; each round draws anew.
        rounds: how many draws are composed into one plan.
        probability: the probability of shuffling each layer group in a draw; otherwise it stays in its slot.
        pin: patterns of tensors whose groups stay in their slots.
        plan: the plan to execute instead of drawing one.
        ignore_config: keys of the configuration that may differ between the models.
        ties: whether tied tensors, such as an input embedding and its output head, move together.

    Raises:
        PlanError: a plan is given, and options for drawing one as well; or a number is not one.

    Examples:
        >>> from fedmr_merge import PlanOptions
        >>> PlanOptions(rule="auto", seed=7).probability
        1.0
    """

    rule: str = "layer"
    seed: int = 0
    round: int = 1
    rounds: int = 1
    probability: float = 1.0
    pin: tuple[str, ...] = ()
    plan: RecombinationPlan | None = None
    ignore_config: tuple[str, ...] = ()
    ties: bool = True

    def __post_init__(self) -> None:
        for name in ("seed", "round", "rounds"):
            object.__setattr__(self, name, whole(getattr(self, name), name))
        object.__setattr__(self, "probability", number(self.probability, "probability"))
        for name in ("pin", "ignore_config"):
            object.__setattr__(self, name, strings(getattr(self, name)))
        if self.plan is not None and (self.seed, self.round, self.rounds, self.probability) != (0, 1, 1, 1.0):
            raise PlanError(
                "a given plan is executed as it is: seed, round, rounds and probability have no effect on it",
                hint="leave out one of them",
            )


@dataclass(frozen=True)
class OutputOptions:
    """What a recombination writes.

    Args:
        slots: the output slots to write; all of them if None.
        mean: how the global model is averaged; none is written if None.
        sidecars_from: the slot whose config and tokenizer every output gets; each slot keeps its own if None.
        hash: whether the SHA-256 of every tensor is written into the lineage; if None, up to 256 MiB of outputs.
            A store always hashes its models, so that there it concerns the mean alone.
        require_finite: whether NaN and infinite numbers that are found while the mean is taken are refused.
        layout: how the models are written: `FilesLayout()`, as the inputs are, or `StoreLayout()`, as links to shards
            of a store.

    Raises:
        PlanError: the layout is not one, or a slot is not a whole number.

    Examples:
        >>> from fedmr_merge import OutputOptions
        >>> OutputOptions(slots=(0, 2), mean=None).slots
        (0, 2)
    """

    slots: tuple[int, ...] | None = None
    mean: MeanOptions | None = field(default_factory=MeanOptions)
    sidecars_from: int | None = None
    hash: bool | None = None
    require_finite: bool = False
    layout: Layout = field(default_factory=FilesLayout)

    def __post_init__(self) -> None:
        if self.slots is not None:
            object.__setattr__(self, "slots", tuple(whole(slot, "slots: a slot") for slot in self.slots))
        if self.sidecars_from is not None:
            object.__setattr__(self, "sidecars_from", whole(self.sidecars_from, "sidecars_from"))
        if not isinstance(self.layout, Layout):
            raise PlanError(
                f"layout must be a layout, found {shown(repr(self.layout), 80)}",
                hint="give FilesLayout() or StoreLayout()",
            )
