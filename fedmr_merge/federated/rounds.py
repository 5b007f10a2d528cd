"""Run the rounds of a stage, one after the other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.model_check import own_code_explained
from fedmr_merge.federated.protocol import State, Trained
from fedmr_merge.federated.training.engines.loop import Loop
from fedmr_merge.federated.training.engines.vmap import Vmap
from fedmr_merge.federated.training.freed_memory import keep_freed_memory
from fedmr_merge.federated.training.local_training import Engine, LocalTraining, train_cohort
from fedmr_merge.federated.training.precision import float32_products
from fedmr_merge.federated.training.privacy import spent_epsilon
from fedmr_merge.federated.training.schedule import LearningRates
from fedmr_merge.federated.training.traffic import Traffic, count_traffic
from fedmr_merge.federated.validation import measure
from fedmr_merge.layers.plan import RecombinationPlan

_SAMPLED_ROUNDS = "privacy_sampled_rounds"
"""Key of a state's facts: the number of rounds whose clients were drawn uniformly, which privacy is accounted by."""

_REPEATED = "privacy_repeated_models"
"""Key of a state's facts: the number of models that clients sent beside their first one of a round."""

_FITTING = "engine_fitting_clients"
"""Key of a state's facts: the number of clients that train at once, where memory or several devices ask for it. How a
cohort is split decides how its sums round, so that a resumed run must split it in the same way."""

_FORMER_KEYS = {
    "privacy: rounds with uniformly drawn clients": _SAMPLED_ROUNDS,
    "engine: clients that memory has room for at once": _FITTING,
}
"""The keys that version 0.1.0 saved."""


@dataclass(frozen=True, eq=False)
class RoundResult:
    """The result of a round.

    `metrics` holds `train_loss` (mean over examples, without diverged clients; absent where no client took a step),
    the metrics of the task (of the global model; for classification these are `test_accuracy` and `test_loss`), `lr`
    (where it follows a schedule), `bytes_down` and `bytes_up` (sent to all clients, and sent back by them),
    `similarity` (mean pairwise cosine of the models of the clients that took a step; with two of them or more, unless
    the server sees their mean alone) and, with `training.privacy`, `epsilon` (spent since the run began, against
    anybody who does not know which clients took part) and, of its local kind, `epsilon_to_server` (against the server,
    which selects them).
    """

    round: int
    method: str  #: the algorithm's name
    clients: tuple[int, ...]  #: the client that trained the model of slot i
    state: State  #: what the next round starts from
    metrics: Mapping[str, float]
    diverged: Mapping[int, str]  #: client → what was wrong with its training; see `divergence.py`
    absent: tuple[int, ...] = ()  #: the clients that did not answer
    missing: Mapping[int, str] = field(default_factory=dict)  #: client on another machine → why it did not answer
    report: Mapping[str, Any] | None = None  #: what the engine records of the round, as JSON values

    @property
    def evaluated(self) -> bool:
        """Whether the global model was evaluated after this round."""
        return hold_evaluation(self.metrics)

    @property
    def plan(self) -> RecombinationPlan | None:
        """The plan by which the trained models were recombined, if they were."""
        return self.state.plan


def begin_stage(federation: Federation, algorithm: Algorithm, previous: State) -> State:
    """Return the state that a stage of a method starts from, with the facts that outlive a stage.

    Its metrics are recorded with the first round.

    Raises TrainingError when the method cannot start here.
    """
    _require_privacy(federation, algorithm)
    algorithm.check()
    sent, changed = federation.architecture.like_trained(previous.global_weights)
    state = algorithm.start(federation, replace(previous, global_weights=sent))
    if state.cohort.slots > 1:
        changed = {}  # what is dispatched are models of clients
        if federation.training.on_divergence == "drop":
            federation.architecture.require_mean_of_weights(f"training.on_divergence drop with {algorithm.name}")
    before = _with_present_keys(previous.facts)
    outliving = {key: before[key] for key in (_SAMPLED_ROUNDS, _REPEATED, _FITTING) if key in before}
    return replace(state, facts={**state.facts, **outliving}, metrics=changed)


def run_rounds(
    federation: Federation,
    algorithm: Algorithm,
    state: State,
    *,
    first_round: int,
    rounds: int,
    rates: LearningRates | None = None,
    engine: Engine | None = None,
) -> Iterator[RoundResult]:
    """Run rounds `first_round` to `first_round + rounds - 1`, yielding each when it is done.

    Rounds are counted from 1 through the whole run, across its stages. A round depends on the federation, the state
    it starts from and its number alone, so that a run that is resumed from the state of any earlier round gives the
    same bytes. States are never changed: an interrupt within a round leaves the state of the round before whole.

    The learning rates are those of the federation's `training`, with a schedule that counts from round 1, or `rates`.
    The engine is the one that `training.engine` names, or the one given.

    Raises TrainingError when a client diverges and `training.on_divergence` is `fail`, when the global model does, or
    when memory runs out.
    """
    _require_privacy(federation, algorithm)
    if federation.device.type == "cpu" and engine is None:  # else the clients train elsewhere
        keep_freed_memory()
    state = replace(state.to(federation.device), facts=_with_present_keys(state.facts))
    rates = rates or LearningRates(federation.training.lr, federation.training.lr_schedule)
    if engine is None:
        engine = Vmap(state.facts.get(_FITTING)) if federation.engine == "vmap" else Loop()
    last = first_round + rounds - 1
    for round in range(first_round, last + 1):
        # TF32 and bfloat16 are for local training alone.
        with float32_products(), own_code_explained(federation, round):
            is_evaluated = round % federation.training.evaluate_every == 0 or round == last
            result = _run_round(federation, algorithm, engine, state, round, rates, is_evaluated)
        state = replace(result.state, metrics={})
        yield result


def hold_evaluation(metrics: Mapping[str, Any]) -> bool:
    """Return whether the metrics of a round are also those of its global model."""
    return "test_loss" in metrics


def evaluated(federation: Federation, result: RoundResult) -> RoundResult:
    """Return the result of a round with the metrics of its global model, which may not have been evaluated yet."""
    if result.evaluated:
        return result
    with float32_products():
        found = measure(federation, result.state.global_weights)
    _require_finite(found, result.round)
    return replace(result, metrics={**result.metrics, **found})


def forecast_traffic(federation: Federation, algorithm: Algorithm, state: State) -> Traffic:
    """Return how many bytes a round sends to the clients and gets back, without training any."""
    selected = algorithm.select(federation, state, 1)
    cohort, context = algorithm.dispatch(federation, state, selected)
    return count_traffic(federation, algorithm, state, cohort, context)


def _with_present_keys(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state's facts with the keys of this version, also where version 0.1.0 saved them."""
    return {_FORMER_KEYS.get(key, key): value for key, value in facts.items()}


def _require_privacy(federation: Federation, algorithm: Algorithm) -> None:
    """Raise TrainingError when what the server does in a method is not covered by `training.privacy`."""
    if federation.training.shows_the_mean_alone and algorithm.why_single_models is not None:
        raise TrainingError(
            f"training.privacy of kind central hides single models in their sum, and {algorithm.name} "
            f"{algorithm.why_single_models}",
            hint="set training.privacy.kind to local, or choose a method that needs the mean alone, e.g. fedavg",
        )
    if federation.training.shows_the_mean_alone:
        federation.architecture.require_mean_of_weights("training.privacy of kind central")
    if federation.training.privacy is not None and algorithm.selection == "by_loss":
        raise TrainingError(
            "training.privacy does not cover selection by_loss, which reads every candidate's loss without noise",
            hint="set selection to uniform",
        )


def _run_round(
    federation: Federation,
    algorithm: Algorithm,
    engine: Engine,
    state: State,
    round: int,
    rates: LearningRates,
    is_evaluated: bool,
) -> RoundResult:
    selected = algorithm.select(federation, state, round)
    dispatch = partial(algorithm.dispatch, federation, state)
    cohort, context = dispatch(selected)
    task = LocalTraining(federation, algorithm, cohort, context, selected, round, lr=rates.at(round), dispatch=dispatch)
    trained = train_cohort(engine, task, own_models=state.cohort.slots > 1)
    selected = trained.asked
    traffic = count_traffic(federation, algorithm, state, task.cohort, task.context, len(trained.absent))
    before, begun = state.facts, state.metrics
    nobody = len(trained.absent) == len(selected)
    state = replace(state, plan=None, metrics={}) if nobody else algorithm.aggregate(federation, state, trained, round)
    if engine.fitting is not None:
        state = replace(state, facts={**state.facts, _FITTING: engine.fitting})
    metrics: dict[str, float] = {}
    if any(trained.steps):
        metrics["train_loss"] = _train_loss(trained)
    if is_evaluated:
        # As in the paper, FedMR's global model is the mean of the trained models, not one of the recombined models.
        metrics |= measure(federation, state.global_weights)
    metrics |= {**begun, **state.metrics}
    if rates.schedule is not None:
        metrics["lr"] = task.learning_rate
    metrics |= {"bytes_down": traffic.down, "bytes_up": traffic.up}
    moved = [slot for slot, steps in enumerate(trained.steps) if steps]
    if len(moved) > 1 and not federation.training.shows_the_mean_alone:
        metrics["similarity"] = trained.cohort.similarity(federation.trainable, moved)
    if federation.training.privacy is not None:
        counted, spent = _account(federation, algorithm, before, selected, round)
        state, metrics = replace(state, facts={**state.facts, **counted}), metrics | spent
    _require_finite(metrics, round)
    return RoundResult(
        round=round,
        method=algorithm.name,
        clients=selected,
        state=state,
        metrics=metrics,
        diverged=trained.diverged,
        absent=trained.absent,
        missing=trained.missing,
        report=trained.report,
    )


def _account(
    federation: Federation, algorithm: Algorithm, before: Mapping[str, Any], selected: tuple[int, ...], round: int
) -> tuple[dict[str, int], dict[str, float]]:
    """Return what is remembered of the selections of a private run, and what it has spent, as metrics."""
    privacy = federation.training.privacy
    assert privacy is not None
    sampled = int(before.get(_SAMPLED_ROUNDS, 0)) + algorithm.samples_uniformly
    # A client that takes part twice in a round, as CluSamp may have it, sends two models.
    repeated = int(before.get(_REPEATED, 0)) + max(Counter(selected).values()) - 1

    def spent(sampled_rounds: int) -> float:
        # Rounds whose selection is not recorded, or not hidden, count in full.
        return spent_epsilon(
            privacy,
            clients=len(federation.partition),
            selected=federation.slots,
            sampled_rounds=sampled_rounds,
            other_rounds=round - sampled_rounds + repeated,
        )

    metrics = {"epsilon": spent(sampled)} | ({"epsilon_to_server": spent(0)} if privacy.kind == "local" else {})
    return {_SAMPLED_ROUNDS: sampled, _REPEATED: repeated}, metrics


def _require_finite(metrics: Mapping[str, float], round: int) -> None:
    """Raise TrainingError when models whose weights are all finite have a loss that is not."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"training diverged in round {round}: {name} is {value}, although all weights are finite",
                hint="lower training.lr, or bound the loss of the clients with training.divergence_loss",
                round=round,
            )


def _train_loss(trained: Trained) -> float:
    """Return the mean loss over the examples of the clients that trained."""
    pairs = [
        (loss, count) for loss, count in zip(trained.losses, trained.examples, strict=True) if not math.isnan(loss)
    ]
    return sum(loss * count for loss, count in pairs) / sum(count for _, count in pairs)
