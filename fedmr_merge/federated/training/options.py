"""The options of local training, `training:` of a recipe, and which of them exclude each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.training.batches import LastBatch
from fedmr_merge.federated.training.participation import Stragglers
from fedmr_merge.federated.training.privacy import Privacy
from fedmr_merge.federated.training.schedule import LrSchedule

Decay = Annotated[float, Ge(0), Lt(1)]
"""The share that a moving average keeps of its last value in a step."""


@dataclass(frozen=True)
class Training:
    """How a selected client trains, with a new optimiser for every client and round, whose memory starts at 0."""

    clients_per_round: Annotated[int, Ge(1)] = 10  #: K, which is also the number of slots
    local_epochs: Annotated[int, Ge(1), Le(10_000)] = 5  #: E, passes over the client's examples in a round
    local_steps: Annotated[int, Ge(1), Le(100_000)] | None = None
    """Steps of a client in a round, in place of local_epochs; it goes through its examples as often as that takes."""
    batch_size: Annotated[int, Ge(1), Le(1_000_000)] = 50  #: B; the last batch of an epoch may be smaller
    gradient_accumulation_steps: Annotated[int, Ge(1), Le(10_000)] = 1
    """Batches whose gradients make one step, that of a batch as large as all of them; a client's memory holds one."""
    last_batch: LastBatch = "merge"
    """What becomes of an epoch's last batch of one example where the model cannot train on it. merge: the batch before
    takes the example, or it is left out where there is none. drop: it is left out. keep: the run is refused."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"  #: adamw: with weight decay apart from the gradient
    lr: Annotated[float, Gt(0)] = 0.01  #: η, learning rate
    lr_schedule: LrSchedule | None = None  #: how the learning rate changes from round to round; left out: not at all
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9  #: β of sgd; adam and adamw have betas in its place
    nesterov: bool = False  #: Nesterov's momentum, of sgd
    betas: tuple[Decay, Decay] | None = None  #: β₁ and β₂ of adam and adamw; left out: 0.9 and 0.999
    eps: Annotated[float, Gt(0)] | None = None  #: ε of adam and adamw; left out: 1e-8
    weight_decay: Annotated[float, Ge(0)] = 0.0  #: added to the gradient, times the weight
    clip_norm: Annotated[float, Gt(0)] | None = None  #: the largest L2 norm of a step's gradient; left out: any
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0  #: share of a label that is spread over all classes
    class_weights: tuple[Annotated[float, Gt(0)], ...] | None = None  #: weight of each class in the loss
    availability: Annotated[float, Gt(0), Le(1)] = 1.0  #: probability that a selected client answers
    stragglers: Stragglers | None = None  #: a share of the clients of a round, which take fewer steps
    evaluate_every: Annotated[int, Ge(1)] = 1
    """Rounds between two evaluations; the last round of a stage, and one that is published, are always evaluated."""
    validation_share: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of every client's examples that is held out of training, for `until` and `keep: best` to decide by; left
    out: none."""
    validation_at: Literal["server", "clients"] = "server"
    """Where it is measured. server: on all held-out examples together. clients: also on those of each client."""
    engine: Literal["auto", "loop", "vmap"] = "auto"  #: loop: a client at a time on each core; auto: vmap on a GPU
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"  #: of products in local training; weights stay in float32
    compile: bool = False  #: compile the loss of a local step with torch.compile; on a GPU, vmap records such steps
    cohort_chunk: Annotated[int, Ge(1)] | None = None  #: clients that vmap trains at once; left out: all that fit
    on_divergence: Literal["keep", "drop", "fail"] = "fail"
    """What becomes of a client whose training diverged. fail: the run ends and names the client. keep: its slot holds
    the model that the client was sent. drop: the others are averaged without it."""
    divergence_loss: Annotated[float, Gt(0)] | None = None  #: a mean training loss above this is divergence
    privacy: Privacy | None = None  #: client-level differential privacy

    @property
    def examples_per_step(self) -> int:
        """How many examples a local step takes, where an epoch has as many left."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def shows_the_mean_alone(self) -> bool:
        """Whether a method is given the mean of the clients' models in place of each one, for central privacy."""
        return self.privacy is not None and self.privacy.kind == "central"


_DEFAULTS = Training()


def require_options_that_fit(training: Training) -> None:
    """Raise TrainingError for an option that has no effect beside another, or needs one that is missing."""
    if training.lr_schedule is not None:
        training.lr_schedule.check("training.lr_schedule")
    if training.validation_share is None and training.validation_at != _DEFAULTS.validation_at:
        raise TrainingError(
            f"training.validation_at is {training.validation_at}, and nothing is held out",
            hint="set training.validation_share, e.g. to 0.1",
        )
    if training.privacy is not None and training.validation_share is not None:
        raise TrainingError(
            "training.privacy does not cover training.validation_share, which is measured without noise",
            hint="leave training.validation_share out",
        )
    if training.privacy is not None and training.availability < 1:
        raise TrainingError(
            "training.privacy accounts for rounds in which every selected client answers",
            hint="leave training.availability out",
        )
    if training.shows_the_mean_alone and training.on_divergence == "drop":
        raise TrainingError(
            "central training.privacy divides by the number of clients, which training.on_divergence drop lowers",
            hint="set training.on_divergence to keep: a client that diverged then counts with an update of 0",
        )
    if training.gradient_accumulation_steps > 1 and training.class_weights is not None:
        raise TrainingError(
            "training.class_weights make each batch a mean that is weighted by its own classes, which "
            "training.gradient_accumulation_steps cannot add up to that of the larger batch",
            hint="raise training.batch_size in place of gradient_accumulation_steps",
        )
    if training.local_steps is not None and training.local_epochs != _DEFAULTS.local_epochs:
        raise TrainingError(
            "training.local_steps takes the place of training.local_epochs, and the recipe sets both",
            hint="leave one of them out",
        )
    _require_options_of_the_optimizer(training)


def _require_options_of_the_optimizer(training: Training) -> None:
    name = training.optimizer
    if name == "sgd":
        for option in ("betas", "eps"):
            if getattr(training, option) is not None:
                raise TrainingError(
                    f"training.{option} is an option of adam and adamw, and training.optimizer is sgd",
                    hint=f"leave training.{option} out, or set training.optimizer to adam",
                )
        if training.nesterov and not training.momentum:
            raise TrainingError("training.nesterov needs momentum, and training.momentum is 0", hint="raise momentum")
        return
    if training.nesterov:
        raise TrainingError(
            f"training.nesterov is an option of sgd, and training.optimizer is {name}",
            hint="set training.nesterov to false",
        )
    # The default is not distinguished from the same value in a recipe, and 0 says what is true: there is no momentum.
    if training.momentum not in (0.0, _DEFAULTS.momentum):
        raise TrainingError(
            f"training.momentum is an option of sgd, and training.optimizer is {name}",
            hint="leave training.momentum out; training.betas has the decays of adam's averages",
        )
