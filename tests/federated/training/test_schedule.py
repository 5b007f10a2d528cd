"""Learning rates by round, against torch's schedulers."""

from __future__ import annotations

import pytest
import torch
from small_federation import digest, make_federation
from torch.optim import lr_scheduler

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.scaffold import Scaffold
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.training.schedule import LearningRates, LrSchedule

KINDS = {
    "constant": ({}, lambda optimizer: lr_scheduler.ConstantLR(optimizer, factor=1.0)),
    "cosine": (
        {"rounds": 6, "min_lr": 0.01},
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=6, eta_min=0.01),
    ),
    "step": ({"every": 2, "factor": 0.5}, lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)),
    "exponential": ({"factor": 0.9}, lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma=0.9)),
}


def torchs(kind, warmup, rounds):
    """Return the rates of torch's scheduler in so many epochs, after a linear warm-up."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.2)
    scheduler = KINDS[kind][1](optimizer)
    if warmup:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.2)
        rising = lr_scheduler.LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
        scheduler = lr_scheduler.SequentialLR(optimizer, [rising, KINDS[kind][1](optimizer)], milestones=[warmup])
    rates = []
    for _ in range(rounds):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_rates_are_those_of_torch(kind, warmup):
    rates = LearningRates(0.2, LrSchedule(kind, **KINDS[kind][0], warmup_rounds=warmup), first_round=5)
    assert [rates.at(round) for round in range(5, 12)] == pytest.approx(torchs(kind, warmup, 7), rel=1e-12)


def test_a_cosine_stays_where_it_ends():
    rates = LearningRates(0.2, LrSchedule("cosine", rounds=2, min_lr=0.05))
    assert [rates.at(round) for round in (1, 2, 3, 9)] == pytest.approx([0.2, 0.125, 0.05, 0.05])
    with pytest.raises(TrainingError, match="has fallen to 0 by round 3"):
        LearningRates(0.2, LrSchedule("cosine", rounds=2)).require_positive(3)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (LrSchedule("cosine"), r"training\.lr_schedule\.rounds is missing, which kind cosine needs"),
        (LrSchedule("step", every=2), r"training\.lr_schedule\.factor is missing"),
        (LrSchedule(factor=0.5), r"training\.lr_schedule\.factor is not an option of kind constant"),
    ],
)
def test_options_are_those_of_the_kind(schedule, message):
    with pytest.raises(TrainingError, match=message):
        make_federation(lr_schedule=schedule)


def rounds_of(federation, algorithm, rounds=2, **options):
    state = algorithm.start(federation, initial_state(federation))
    return list(run_rounds(federation, algorithm, state, first_round=1, rounds=rounds, **options))


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_a_round_trains_at_its_rate(engine):
    schedule = LrSchedule("step", every=1, factor=0.5)
    first, second = rounds_of(make_federation(engine=engine, lr=0.04, lr_schedule=schedule), FedAvg())
    assert [result.metrics["lr"] for result in (first, second)] == [0.04, 0.02]
    plain = make_federation(engine=engine, lr=0.02)
    (expected,) = run_rounds(plain, FedAvg(), first.state, first_round=2, rounds=1)
    assert digest(second.state) == digest(expected.state)
    assert "lr" not in expected.metrics


def test_control_variates_are_made_with_the_rate_of_their_round():
    """Whatever it is, they are a mean of gradients: so one step at half the rate leaves them as they are."""
    federation = make_federation(clients_per_round=6, local_epochs=1, batch_size=100, momentum=0.0)
    found = [rounds_of(federation, Scaffold(), 1, rates=LearningRates(lr))[0].state for lr in (0.05, 0.025)]
    for name, tensor in found[0].tensors.items():
        torch.testing.assert_close(found[1].tensors[name], tensor, rtol=1e-3, atol=1e-5)
