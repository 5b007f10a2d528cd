from __future__ import annotations

import pytest
import torch
from small_federation import digest, make_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms._feature_generator import FeatureGenerator, draws
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedgen import FedGen
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.models.cnn import Cnn
from fedmr_merge.federated.protocol import State, initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.training.forward import Forward


def run(federation, algorithm, rounds):
    state = algorithm.start(federation, initial_state(federation))
    return list(run_rounds(federation, algorithm, state, first_round=1, rounds=rounds))


def test_without_its_terms_it_is_fedavg():
    federation = make_federation()
    found = run(federation, FedGen(alpha=0.0, beta=0.0), 3)[-1].state
    assert digest(State(found.cohort, found.global_weights)) == digest(run(federation, FedAvg(), 3)[-1].state)


def test_there_are_no_generated_features_in_the_first_round():
    federation = make_federation()
    found, expected = run(federation, FedGen(), 2), run(federation, FedAvg(), 2)
    assert found[0].metrics["test_loss"] == expected[0].metrics["test_loss"]
    assert found[1].metrics["test_loss"] != expected[1].metrics["test_loss"]


def test_the_generators_loss_falls_within_a_round_and_from_round_to_round():
    federation = make_federation(Cnn())
    results = run(federation, FedGen(generator_lr=3e-3), 4)
    losses = [result.state.facts["generator_loss"] for result in results]
    assert losses[-1] < 0.5 * losses[0]

    forward, teachers = federation.evaluation_forward, Cohort.stack([results[-1].state.global_weights])
    generator = FeatureGenerator.initialise(4, 3, 16, 512, seed=0)
    batch = (torch.arange(3).repeat(10), torch.rand(30, 4, generator=draws(0, "test", 0)))
    trained, losses = generator.trained(forward, teachers, [batch] * 60, lr=1e-2)
    assert losses[-1] < 0.5 * losses[0]
    # What it makes of a label, the head takes for that label.
    features = trained(*batch)
    assert (forward.head(results[-1].state.global_weights, features).argmax(1) == batch[0]).float().mean() > 0.9


def test_its_adam_goes_on_where_it_stopped():
    federation = make_federation()
    teachers = Cohort.stack([run(federation, FedAvg(), 1)[0].state.global_weights] * 2)
    generator = FeatureGenerator.initialise(4, 3, 16, 16, seed=0)
    random = draws(0, "test", 0)
    batches = [(torch.arange(3), torch.rand(3, 4, generator=random)) for _ in range(6)]
    forward: Forward = federation.evaluation_forward
    before = {name: tensor.clone() for name, tensor in generator.tensors.items()}
    straight, losses = generator.trained(forward, teachers, batches, lr=1e-2)
    half, first = generator.trained(forward, teachers, batches[:2], lr=1e-2)
    rest, second = half.trained(forward, teachers, batches[2:], lr=1e-2)
    assert [*first, *second] == losses
    assert all(torch.equal(rest.tensors[name], tensor) for name, tensor in straight.tensors.items())
    assert all(torch.equal(generator.tensors[name], tensor) for name, tensor in before.items())


def test_label_counts_are_those_of_the_clients_last_seen():
    federation = make_federation()
    (result,) = run(federation, FedGen(), 1)
    labels = federation.data.train_labels.numpy()
    counts = federation.partition.class_counts(labels, 3)[list(result.clients)].sum(axis=0)
    assert result.state.facts["label_counts"] == counts.tolist()


def test_clients_get_features_of_labels_that_there_are():
    federation = make_federation()
    algorithm = FedGen()
    (result,) = run(federation, algorithm, 1)
    state = State(
        result.state.cohort,
        result.state.global_weights,
        result.state.tensors,
        {**result.state.facts, "label_counts": [3, 0, 1]},
    )
    _, context = algorithm.dispatch(federation, state, (0, 1, 2))
    counts = torch.bincount(context.shared["generated"]["labels"], minlength=3)
    assert counts[1] == 0
    assert abs(counts[0] / counts.sum() - 0.75) < 0.05
    assert context.shared["generated"]["sampled"].shape == (1000, 16)


def test_a_generator_that_diverges_ends_the_run():
    with pytest.raises(TrainingError, match=r"generator diverged in round 1: its loss is (nan|inf)"):
        run(make_federation(), FedGen(generator_lr=1e30), 1)
