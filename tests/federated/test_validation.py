"""What is held out of training, when a model is evaluated, and how a metric is spread over the clients."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from small_federation import SIZES, digest, make_federation
from small_tasks import make_task_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated import evaluation
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.catalogue import TASKS
from fedmr_merge.federated.evaluation import evaluate
from fedmr_merge.federated.metrics import ACCURACY, Metric
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import evaluated, run_rounds
from fedmr_merge.federated.validation import OverClients, measure

LOSS = Metric("loss", higher_is_better=False)


def run(federation, rounds):
    state = FedMR().start(federation, initial_state(federation))
    return list(run_rounds(federation, FedMR(), state, first_round=1, rounds=rounds))


def test_training_is_the_same_however_seldom_it_is_evaluated():
    often, seldom = run(make_federation(), 5), run(make_federation(evaluate_every=3), 5)
    assert [digest(one.state) for one in often] == [digest(other.state) for other in seldom]
    # Round 3, and the last one.
    assert [result.evaluated for result in seldom] == [False, False, True, False, True]
    for one, other in zip(often, seldom, strict=True):
        if other.evaluated:
            assert one.metrics == other.metrics
        else:
            assert one.metrics.keys() - other.metrics.keys() == {"test_accuracy", "test_loss"}


def test_a_round_is_evaluated_later_as_it_would_have_been():
    federation = make_federation(evaluate_every=100)
    first = run(federation, 2)[0]
    assert evaluated(federation, first).metrics == pytest.approx(run(make_federation(), 1)[0].metrics, nan_ok=False)
    again = evaluated(federation, first)
    assert evaluated(federation, again) is again


def test_what_is_held_out_is_not_trained_on():
    federation = make_federation(validation_share=0.25)
    whole = make_federation()
    assert [len(out) for out in federation.held_out] == [1, 2, 3, 1, 1, 2]
    assert tuple(map(sum, zip(federation.partition.sizes, map(len, federation.held_out), strict=True))) == SIZES
    assert federation.dealt.to_json() == whole.partition.to_json()
    assert federation.deciding_part == "validation"
    assert whole.deciding_part == "test"
    other = make_federation(validation_share=0.25, seed=1)
    assert any(not np.array_equal(a, b) for a, b in zip(federation.held_out, other.held_out, strict=True))


@pytest.mark.parametrize("task", TASKS.names())
def test_validation_is_measured_on_all_held_out_examples_and_on_those_of_each_client(task, monkeypatch):
    federation = make_task_federation(task, validation_share=0.4, validation_at="clients")
    weights = {key: torch.randn_like(tensor) * 0.3 for key, tensor in federation.module.state_dict().items()}
    indices = [torch.from_numpy(out) for out in federation.held_out]
    together = evaluate(federation, weights, "train", torch.cat(indices)).metrics
    name = federation.task.decisive.name
    alone = [evaluate(federation, weights, "train", out).metrics[name] for out in indices]
    monkeypatch.setattr(evaluation, "_BATCH_SIZE", 3)  # batches with parts of several clients
    found = measure(federation, weights)
    for metric in federation.task.metrics:
        assert found[f"validation_{metric.name}"] == pytest.approx(together[metric.name], rel=1e-4, abs=1e-6)
    assert found[f"client_{name}_mean"] == pytest.approx(statistics.fmean(alone), rel=1e-4)
    assert found[f"client_{name}_deviation"] == pytest.approx(statistics.pstdev(alone), rel=1e-3, abs=1e-6)
    worst = min(alone) if federation.task.decisive.higher_is_better else max(alone)
    assert found[f"client_{name}_worst_decile"] == pytest.approx(worst, rel=1e-4, abs=1e-6)
    at_server = make_task_federation(task, validation_share=0.4)
    assert measure(at_server, weights) == {key: value for key, value in found.items() if "client" not in key}


def test_a_spread_by_hand():
    found = OverClients.of([0.5, 0.25, 1.0, *[0.5] * 17], ACCURACY)
    assert found.mean == pytest.approx((0.25 + 1 + 18 * 0.5) / 20)
    assert found.deviation == pytest.approx(
        math.sqrt(((0.5 - found.mean) ** 2 * 18 + (0.25 - found.mean) ** 2 + (1 - found.mean) ** 2) / 20)
    )
    assert found.worst_decile == (0.25 + 0.5) / 2  # two of twenty
    assert OverClients.of([3.0, 1.0], LOSS).worst_decile == 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_at": "clients"}, "training.validation_at is clients, and nothing is held out"),
        (
            {"validation_share": 0.1, "privacy": {"clip": 1.0, "noise_multiplier": 1.0}},
            "training.privacy does not cover training.validation_share",
        ),
    ],
)
def test_options_that_exclude_each_other(options, message):
    from fedmr_merge.federated.training.privacy import Privacy

    if "privacy" in options:
        options = options | {"privacy": Privacy(**options["privacy"])}
    with pytest.raises(TrainingError, match=message) as caught:
        make_federation(**options)
    assert caught.value.hint
