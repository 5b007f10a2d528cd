"""The server's optimisers against ten lines that follow the paper's algorithm 2, on numbers of a hand's size."""

from __future__ import annotations

import math

import pytest
import torch
from small_federation import Normalised, digest, make_federation, restored

from fedmr_merge.errors import RecipeError, TrainingError
from fedmr_merge.federated.algorithms._server_optimizer import ServerOptimizer
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import begin_stage, run_rounds
from fedmr_merge.recipe.schema import parse_recipe

DELTAS = (2.0, -1.0, 0.5)


def by_the_paper(name, lr, beta1, beta2, tau):
    """Return x after each of three rounds from x = 1, whose mean updates are DELTAS."""
    x, m, v, found = 1.0, 0.0, tau**2, []
    for delta in DELTAS:
        if name == "momentum":  # FedAvgM
            m = beta1 * m + delta
            x += lr * m
        else:
            m = beta1 * m + (1 - beta1) * delta
            if name == "adagrad":
                v = v + delta**2
            elif name == "yogi":
                v = v - (1 - beta2) * delta**2 * math.copysign(1, v - delta**2)
            else:
                v = beta2 * v + (1 - beta2) * delta**2
            x += lr * m / (math.sqrt(v) + tau)
        found.append(x)
    return found


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"name": "adam"}, (0.9, 0.99, 1e-3)),
        ({"name": "adam", "beta1": 0.5, "beta2": 0.7, "tau": 0.1}, (0.5, 0.7, 0.1)),
        ({"name": "yogi", "beta2": 0.5}, (0.9, 0.5, 1e-3)),
        ({"name": "adagrad"}, (0.0, 0.0, 1e-3)),
        ({"name": "momentum", "beta1": 0.5}, (0.5, 0.0, 1.0)),
    ],
)
def test_steps_are_those_of_the_paper(options, values):
    optimizer, memory, found = ServerOptimizer(lr=0.1, **options), {}, []
    model = {"w": torch.ones(1), "statistic": torch.zeros(1)}
    for delta in DELTAS:
        mean = {"w": model["w"] + delta, "statistic": torch.full((1,), delta)}
        model, memory = optimizer.step(model, mean, memory, ["w"])
        assert model["statistic"].item() == delta
        found.append(model["w"].item())
    assert found == pytest.approx(by_the_paper(options["name"], 0.1, *values), rel=1e-5)


def test_momentum_of_0_at_a_rate_of_1_is_the_mean():
    federation, two = make_federation(Normalised()), {"first_round": 1, "rounds": 2}
    plain, stepped = (
        list(run_rounds(federation, method, method.start(federation, initial_state(federation)), **two))[-1]
        for method in (FedAvg(), FedAvg(server_optimizer=ServerOptimizer("momentum", lr=1.0, beta1=0.0)))
    )
    torch.testing.assert_close(dict(stepped.state.global_weights), dict(plain.state.global_weights))


AVERAGING = [name for name in ALGORITHMS.names() if hasattr(ALGORITHMS.find(name)(), "server_optimizer")]


@pytest.mark.parametrize("name", AVERAGING)
def test_its_memory_is_saved_and_a_stage_starts_anew(name):
    algorithm = ALGORITHMS.find(name)(server_optimizer=ServerOptimizer("yogi", lr=0.1))
    federation = make_federation()
    start = begin_stage(federation, algorithm, initial_state(federation))
    first, second = run_rounds(federation, algorithm, start, first_round=1, rounds=2)
    kept = {key for key in first.state.tensors if key.startswith("server_optimizer/")}
    assert len(kept) == 2 * len(federation.trainable)
    (resumed,) = run_rounds(federation, algorithm, restored(first.state), first_round=2, rounds=1)
    assert digest(resumed.state) == digest(second.state)
    again = begin_stage(federation, algorithm, second.state)
    assert not any(key.startswith("server_optimizer/") for key in again.tensors)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS.names() if name not in AVERAGING])
def test_other_methods_refuse_it_by_name(name):
    recipe = {
        "name": "x",
        "data": {"name": "digits", "partition": {"kind": "iid"}},
        "model": {"name": "cnn"},
        "stages": [{name: {"rounds": 1, "server_optimizer": {"name": "adam", "lr": 0.1}}}],
    }
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe, "x.yaml")
    (fault,) = caught.value.faults
    assert fault.path == f"stages[0].{name}.server_optimizer"
    assert fault.message.startswith("unknown option")


def test_an_option_of_another_optimiser_is_refused():
    algorithm = FedAvg(server_optimizer=ServerOptimizer("momentum", lr=1.0, tau=0.1))
    federation = make_federation()
    with pytest.raises(TrainingError, match=r"server_optimizer\.tau is not an option of momentum"):
        begin_stage(federation, algorithm, initial_state(federation))
