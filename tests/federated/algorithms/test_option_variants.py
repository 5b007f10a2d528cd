"""Every method with every option at other values than the default; a new file in algorithms/ joins by itself."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from small_federation import Normalised, digest, make_federation, restored

from fedmr_merge.federated.algorithms._server_optimizer import ServerOptimizer
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.protocol import State, initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.options import Faults, check_options

OTHERS = {
    "rule": ("tensor", "model"),
    "server_optimizer": tuple(ServerOptimizer(name, lr=0.1) for name in ("adam", "yogi", "momentum", "adagrad")),
}
"""Other values of options that are strings or have options; those of all other kinds are found by types and bounds."""


def is_possible(cls: type[Any], option: str, value: Any) -> bool:
    faults = Faults()
    check_options(cls, {option: value}, "", faults)
    return not faults


def other_values(cls: type[Any], option: dataclasses.Field[Any]) -> tuple[Any, ...]:
    """Return values of an option that differ from its default."""
    default, hint = option.default, get_type_hints(cls)[option.name]
    if get_origin(hint) is Literal:
        return tuple(value for value in get_args(hint) if value != default)
    if isinstance(default, bool):
        return (not default,)
    if isinstance(default, int):
        candidates = [max(1, default // 16), default + 1]
    elif isinstance(default, float):
        candidates = [default / 4, default * 0.7, default * 2]
    else:
        return OTHERS[option.name]
    return tuple(value for value in candidates if value != default and is_possible(cls, option.name, value))[:1]


def variants() -> list[Any]:
    """Return the options of each method in as many ways as its option with the most values asks for."""
    found = []
    for name in ALGORITHMS.names():
        cls = ALGORITHMS.find(name)
        options = {field.name: other_values(cls, field) for field in dataclasses.fields(cls)}
        options = {option: values for option, values in options.items() if values}
        for turn in range(max(map(len, options.values()), default=0)):
            chosen = {option: values[turn % len(values)] for option, values in options.items()}
            found.append(pytest.param(cls(**chosen), id=f"{name}-{turn + 1}"))
    return found


def test_every_option_has_another_value():
    """Only the selection of a method that selects by itself has none."""
    for name in ALGORITHMS.names():
        cls = ALGORITHMS.find(name)
        for field in dataclasses.fields(cls):
            own = field.name == "selection" and field.default == "clusters"
            assert bool(other_values(cls, field)) != own, (name, field.name)


def one_round(algorithm: Any, state: State, round: int, engine: str = "loop") -> Any:
    federation = make_federation(Normalised(), local_epochs=1, engine=engine)
    (result,) = run_rounds(federation, algorithm, state, first_round=round, rounds=1)
    return result


@pytest.mark.parametrize("algorithm", variants())
def test_state_in_state_out_and_engines_agree(algorithm):
    federation = make_federation(Normalised(), local_epochs=1)
    first, second = run_rounds(
        federation, algorithm, algorithm.start(federation, initial_state(federation)), first_round=1, rounds=2
    )
    before = digest(first.state)
    resumed = one_round(algorithm, restored(first.state), 2)
    assert digest(resumed.state) == digest(second.state)
    assert resumed.metrics == second.metrics
    together = one_round(algorithm, first.state, 2, engine="vmap")
    assert digest(first.state) == before
    assert together.clients == second.clients
    for family in ("global_weights", "tensors"):
        pair = [getattr(result.state, family) for result in (together, second)]
        torch.testing.assert_close(*map(dict, pair), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        dict(together.state.cohort.tensors), dict(second.state.cohort.tensors), rtol=1e-3, atol=1e-5
    )
