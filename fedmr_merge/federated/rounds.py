"""The rounds of a stage, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fedmr_merge.federated.engines.loop import Loop
from fedmr_merge.federated.evaluation import evaluate
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.local_training import Engine, LocalTraining, train_cohort
from fedmr_merge.federated.protocol import Algorithm, State
from fedmr_merge.recombination.plan import RecombinationPlan


@dataclass(frozen=True, eq=False)
class RoundResult:
    """What a round did."""

    round: int
    method: str  #: the algorithm's name
    clients: tuple[int, ...]  #: the client that trained the model of slot i
    state: State  #: what the next round starts from
    plan: RecombinationPlan | None  #: how the trained models were recombined, if they were
    metrics: Mapping[
        str, float
    ]  #: `train_loss` (mean over examples), `test_accuracy` and `test_loss` of the global model


def run_rounds(
    federation: Federation, algorithm: Algorithm, state: State, *, first_round: int, rounds: int
) -> Iterator[RoundResult]:
    """Run rounds `first_round` to `first_round + rounds - 1`, yielding each when it is done.

    Rounds are counted from 1 through the whole run, across its stages. A round depends on the federation, the state
    it starts from and its number alone: going on from the state of any earlier round gives the same bytes.

    Raises TrainingError when a client diverges.
    """
    engine = _engine(federation)
    state = state.to(federation.device)
    for round in range(first_round, first_round + rounds):
        result = _run_round(federation, algorithm, engine, state, round)
        state = result.state
        yield result


def _run_round(federation: Federation, algorithm: Algorithm, engine: Engine, state: State, round: int) -> RoundResult:
    selected = algorithm.select(federation, state, round)
    cohort, context = algorithm.dispatch(federation, state, selected)
    trained = train_cohort(engine, LocalTraining(federation, algorithm, cohort, context, selected, round))
    state, plan = algorithm.aggregate(federation, state, trained, round)
    # FedMR's global model is evaluated as the paper has it: the mean of the trained models, not one of the recombined.
    test = evaluate(federation.evaluation_forward, state.global_weights, federation.data)
    weighted = sum(loss * count for loss, count in zip(trained.losses, trained.examples, strict=True))
    return RoundResult(
        round=round,
        method=algorithm.name,
        clients=selected,
        state=state,
        plan=plan,
        metrics={
            "train_loss": weighted / sum(trained.examples),
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
        },
    )


def _engine(federation: Federation) -> Engine:
    engines: dict[str, type[Engine]] = {"auto": Loop, "loop": Loop}
    return engines[federation.training.engine]()
