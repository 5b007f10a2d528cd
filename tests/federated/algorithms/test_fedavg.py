from __future__ import annotations

import torch
import torch.nn.functional as F
from small_federation import make_federation

from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds


def test_one_full_step_of_all_clients_is_one_step_on_the_union():
    """Full batches, plain SGD, one local step: the mean of the steps, weighted by examples, is that of the union."""
    federation = make_federation(clients_per_round=6, local_epochs=1, batch_size=1000, momentum=0.0)
    # A random head: with the initial one, all zeros, no layer below it would move.
    torch.manual_seed(0)
    torch.nn.init.normal_(federation.module.fc2.weight, std=0.1)
    start = FedAvg().start(federation, initial_state(federation))
    (result,) = run_rounds(federation, FedAvg(), start, first_round=1, rounds=1)

    module, data = federation.module.train(), federation.data
    F.cross_entropy(module(data.normalise(data.train_images)), data.train_labels).backward()
    for name, parameter in module.named_parameters():
        expected = parameter.detach() - federation.training.lr * parameter.grad
        assert not torch.equal(expected, parameter)
        torch.testing.assert_close(result.state.global_weights[name], expected, rtol=1e-5, atol=1e-6)


def test_goes_on_from_the_mean_of_a_recombined_cohort():
    federation = make_federation()
    *_, last = run_rounds(
        federation, FedMR(), FedMR().start(federation, initial_state(federation)), first_round=1, rounds=2
    )
    state = FedAvg().start(federation, last.state)
    assert state.cohort.slots == 1
    for name, mean in last.state.cohort.mean().items():
        torch.testing.assert_close(state.cohort.slot(0)[name], mean)
