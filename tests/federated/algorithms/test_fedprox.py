from __future__ import annotations

import torch
from small_federation import digest, make_federation

from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedprox import FedProx
from fedmr_merge.federated.protocol import Batch, Context, initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.tasks._classification import CrossEntropy


def run(federation, algorithm, rounds=2):
    state = algorithm.start(federation, initial_state(federation))
    return list(run_rounds(federation, algorithm, state, first_round=1, rounds=rounds))[-1].state


def test_without_the_penalty_it_is_fedavg():
    federation = make_federation()
    assert digest(run(federation, FedProx(mu=0.0))) == digest(run(federation, FedAvg()))


class Undecided:
    """A model whose logits are always equal."""

    loss = CrossEntropy()

    def __call__(self, weights, images):
        return torch.zeros(len(images), 2)


def test_the_penalty_by_hand():
    """Weights (3, 1) around (1, 2): μ/2 (4 + 1) = 1.25 on top of log 2 for equal logits; the gradient: μ (v − w)."""
    weights = {"w": torch.tensor([3.0, 1.0], requires_grad=True), "buffer": torch.tensor(7.0)}
    context = Context(shared={"centre": {"w": torch.tensor([1.0, 2.0])}})
    batch = Batch(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    loss = FedProx(mu=0.5).objective(Undecided(), weights, batch, context)
    torch.testing.assert_close(loss.item(), 1.25 + 0.6931472, rtol=1e-6, atol=0)
    assert torch.autograd.grad(loss, weights["w"])[0].tolist() == [1.0, -0.5]


def test_the_penalty_holds_clients_near_the_global_model():
    federation = make_federation()
    start = federation.module.state_dict()

    def moved(algorithm):
        weights = run(federation, algorithm, 1).global_weights
        return sum((weights[name] - start[name]).square().sum() for name in federation.trainable).sqrt()

    assert moved(FedProx(mu=5.0)) < 0.9 * moved(FedProx(mu=0.1)) <= moved(FedAvg())
