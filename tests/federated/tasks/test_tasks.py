"""What every task keeps to, with every method and on both engines; a new file in tasks/ joins by itself."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache

import pytest
import torch
from small_federation import digest
from small_tasks import make_task_federation, padded_further, parts_of

from fedmr_merge.errors import FedmrMergeError, TrainingError
from fedmr_merge.federated.catalogue import ALGORITHMS, TASKS
from fedmr_merge.federated.evaluation import evaluate
from fedmr_merge.federated.federation import open_federation
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import begin_stage, run_rounds
from fedmr_merge.federated.training.options import Training

REFUSED = {
    ("regression", "fedgen"): "fedgen generates features that heads classify, and the targets of these data are not cl",
    ("causal-lm", "fedgen"): "fedgen generates features that heads classify, and the targets of these data are not cl",
    ("causal-lm", "moon"): "moon compares the features of models, and model gpt does not say what its features and",
}


@cache
def federation_of(task, engine):
    return make_task_federation(task, engine=engine)


def run(federation, method, rounds=1):
    algorithm = ALGORITHMS.find(method)()
    state = begin_stage(federation, algorithm, initial_state(federation))
    return list(run_rounds(federation, algorithm, state, first_round=1, rounds=rounds))[-1]


@pytest.mark.parametrize("name", TASKS.names())
class TestContract:
    """Of one task."""

    def test_is_a_frozen_dataclass_with_defaults_that_is_documented(self, name):
        task = TASKS.find(name)()
        assert dataclasses.is_dataclass(task)
        assert type(task).__dataclass_params__.frozen
        assert type(task).__doc__
        assert task.name == name
        assert task.pipeline_tag

    def test_every_metric_is_measured_and_loss_is_among_them(self, name):
        federation = federation_of(name, "loop")
        found = evaluate(federation, federation.module.state_dict())
        assert list(found.metrics) == [metric.name for metric in federation.task.metrics]
        assert "loss" in found.metrics
        assert all(math.isfinite(value) for value in found.metrics.values())

    def test_metrics_of_batches_are_those_of_the_whole(self, name, monkeypatch):
        federation = federation_of(name, "loop")
        weights = {key: torch.randn_like(tensor) * 0.3 for key, tensor in federation.module.state_dict().items()}
        whole = evaluate(federation, weights, in_detail=True)
        monkeypatch.setattr("fedmr_merge.federated.evaluation._BATCH_SIZE", 3)
        parts = evaluate(federation, weights, in_detail=True)
        assert parts.metrics == pytest.approx(whole.metrics, rel=1e-5)
        assert parts.details == whole.details
        monkeypatch.setattr("fedmr_merge.federated.evaluation._LARGEST_OUTPUT", 1)
        assert evaluate(federation, weights).metrics == pytest.approx(whole.metrics, rel=1e-5)

    def test_the_loss_that_is_trained_on_is_the_one_that_is_measured(self, name):
        federation = federation_of(name, "loop")
        data, weights = federation.data, federation.module.state_dict()
        outputs = federation.evaluation_forward(weights, data.inputs("test", slice(None)))
        loss = federation.task.loss(data, Training())(outputs, data.targets("test"))
        assert evaluate(federation, weights).metrics["loss"] == pytest.approx(float(loss), rel=1e-5)

    def test_config_is_json_that_says_what_a_module_is_built_for(self, name):
        data, architecture = parts_of(name)
        config = json.loads(json.dumps(TASKS.find(name)().config(data)))
        if name != "image-classification":  # whose config is as it was before there were other tasks
            assert config["task"] == name
            module = architecture.build(tuple(config["input"]["shape"]), config["num_outputs"])
            assert module.state_dict().keys() == federation_of(name, "loop").module.state_dict().keys()

    def test_learns(self, name):
        federation = make_task_federation(name, clients_per_round=6, local_epochs=6, lr=0.05)
        before = evaluate(federation, federation.module.state_dict()).metrics
        after = run(federation, "fedavg", rounds=4).metrics
        decisive = federation.task.decisive
        assert decisive.is_better(after[decisive.key], before[decisive.name])
        assert after["test_loss"] < 0.95 * before["loss"]

    def test_data_of_another_task_are_refused(self, name):
        others = [other for other in TASKS.names() if other != name]
        for other in others:
            data, _ = parts_of(other)
            with pytest.raises(FedmrMergeError, match=rf"^task {name} needs") as caught:
                TASKS.find(name)().check(data, Training())
            assert caught.value.hint


@pytest.mark.parametrize("method", ALGORITHMS.names())
@pytest.mark.parametrize("task", [name for name in TASKS.names() if name != "image-classification"])
def test_every_method_trains_alike_on_both_engines_or_is_refused_with_its_reason(task, method):
    if (task, method) in REFUSED:
        with pytest.raises(TrainingError, match=REFUSED[task, method]) as caught:
            run(federation_of(task, "loop"), method)
        assert caught.value.hint
        return
    loop, vmap = (run(federation_of(task, engine), method, rounds=2) for engine in ("loop", "vmap"))
    assert digest(loop.state) != digest(initial_state(federation_of(task, "loop")))
    for name, tensor in loop.state.global_weights.items():
        torch.testing.assert_close(vmap.state.global_weights[name], tensor, rtol=1e-3, atol=1e-5)
    assert loop.metrics == pytest.approx(vmap.metrics, rel=1e-3)
    assert loop.state.plan == vmap.state.plan


@pytest.mark.parametrize("task", ["text-classification", "causal-lm"])
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_how_far_sequences_are_padded_changes_nothing(task, engine):
    data, architecture = parts_of(task)
    federation = federation_of(task, engine)
    further = open_federation(
        architecture,
        padded_further(data, 3),
        federation.partition,
        federation.training,
        seed=0,
        task=federation.task,
    )
    # The embeddings of more positions are drawn, too: the models start from the same weights.
    start = federation.module.state_dict()
    longer = {name: tensor.clone() for name, tensor in further.module.state_dict().items()}
    for name, tensor in start.items():
        longer[name][: len(tensor)] = tensor
    further.module.load_state_dict(longer)
    found, expected = run(further, "fedavg").state.global_weights, run(federation, "fedavg").state.global_weights
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name][: len(tensor)], tensor, rtol=1e-4, atol=1e-6)
    # Nothing was learnt about the further positions; a mean of equal numbers may round.
    positions = "transformer.positions.weight"
    torch.testing.assert_close(found[positions][6:], longer[positions][6:], rtol=1e-6, atol=0)
