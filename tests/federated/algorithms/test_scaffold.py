from __future__ import annotations

import pytest
import torch
from small_federation import make_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.scaffold import Scaffold
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.protocol import State, Trained, initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.federated.training.options import Training


class OneWeight:
    """Ten clients, one weight, η = 0.5: what `aggregate` needs of a federation."""

    trainable = ("w",)
    partition = range(10)
    device = torch.device("cpu")

    def __init__(self, **training):
        self.training = Training(**{"momentum": 0.0} | training)


def aggregate(federation, algorithm, tensors, **trained):
    state = State(Cohort({"w": torch.tensor([[2.0]])}), {"w": torch.tensor([2.0])}, tensors=tensors)
    models = Cohort({"w": torch.tensor([[1.0], [5.0]])})
    result = Trained(models, clients=(3, 7), examples=(9, 1), losses=(0.1, 0.2), lr=0.5, **trained)
    return algorithm.aggregate(federation, state, result, 1)


def test_control_variates_after_one_round_by_hand():
    """X = 2, y = (1, 5), 2 and 4 steps of η = 0.5: x − y over Kη is (1, −1.5)."""
    state = aggregate(OneWeight(), Scaffold(), {"server/w": torch.zeros(1)}, steps=(2, 4))
    assert state.tensors["client/00003/w"].tolist() == [1.0]
    assert state.tensors["client/00007/w"].tolist() == [-1.5]
    assert state.tensors["server/w"].tolist() == pytest.approx([-0.05])  # the sum of the changes over all ten clients
    assert state.global_weights["w"].tolist() == [3.0]  # unweighted
    assert len(state.tensors) == 3  # nothing is kept of clients that never took part


def test_control_variates_after_a_second_round_by_hand():
    """c_i ← c_i − c + (x − y_i)/(Kη) with c = 0.25 and c_3 = 3: 3 − 0.25 + 1 = 3.75 and 0 − 0.25 − 1.5 = −1.75."""
    before = {"server/w": torch.tensor([0.25]), "client/00003/w": torch.tensor([3.0]), "client/00001/w": torch.ones(1)}
    state = aggregate(OneWeight(), Scaffold(server_lr=0.5), before, steps=(2, 4))
    assert state.tensors["client/00003/w"].tolist() == [3.75]
    assert state.tensors["client/00007/w"].tolist() == [-1.75]
    assert state.tensors["client/00001/w"].tolist() == [1.0]
    assert state.tensors["server/w"].tolist() == pytest.approx([0.25 + (0.75 - 1.75) / 10])
    assert state.global_weights["w"].tolist() == [2.5]  # half the way to 3


def test_a_client_that_took_no_step_keeps_its_control_variate():
    before = {"server/w": torch.tensor([0.25]), "client/00003/w": torch.tensor([3.0])}
    state = aggregate(OneWeight(), Scaffold(), before, steps=(0, 4))
    assert state.tensors["client/00003/w"].tolist() == [3.0]
    assert state.tensors["server/w"].tolist() == pytest.approx([0.25 - 0.175])


def test_momentum_is_taken_out_of_the_steps():
    """Two steps with β = 0.5 on a gradient of 1 go 1 and 1.5 times η: 2.5 η, which is not two gradients."""
    state = aggregate(OneWeight(momentum=0.5), Scaffold(), {"server/w": torch.zeros(1)}, steps=(2, 4))
    assert state.tensors["client/00003/w"].tolist() == pytest.approx([1 / (2.5 * 0.5)])


def test_nesterovs_momentum_is_taken_out_of_the_steps():
    """Two steps with β = 0.5 on a gradient of 1 go 1.5 and 1.75 times η."""
    state = aggregate(OneWeight(momentum=0.5, nesterov=True), Scaffold(), {"server/w": torch.zeros(1)}, steps=(2, 4))
    assert state.tensors["client/00003/w"].tolist() == pytest.approx([1 / (3.25 * 0.5)])


def test_steps_that_are_not_sums_of_gradients_are_refused():
    federation = make_federation(optimizer="adam")
    with pytest.raises(TrainingError, match=r"^scaffold's control variates are means of gradients.*adam"):
        started(federation, Scaffold())


def test_clipped_steps_are_refused():
    with pytest.raises(TrainingError, match=r"^scaffold's control variates are means of gradients, which clipped"):
        started(make_federation(clip_norm=1.0), Scaffold())


def test_the_first_round_is_fedavgs_with_equal_weights():
    """No correction yet: the models that come back are FedAvg's."""
    federation = make_federation(momentum=0.0)
    (result,) = run_rounds(federation, Scaffold(), started(federation, Scaffold()), first_round=1, rounds=1)
    (plain,) = run_rounds(federation, FedAvg(), started(federation, FedAvg()), first_round=1, rounds=1)
    assert result.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"], rel=1e-5)
    kept = {name.split("/")[1] for name in result.state.tensors if name.startswith("client/")}
    assert kept == {f"{client:05d}" for client in result.clients}


def test_a_steps_gradient_is_corrected_by_c_minus_c_i():
    """One full step of every client with plain SGD: y_i = x − η(g_i + c − c_i)."""
    federation = make_federation(clients_per_round=6, local_epochs=1, batch_size=100, momentum=0.0)
    first, second = run_rounds(federation, Scaffold(), started(federation, Scaffold()), first_round=1, rounds=2)
    # With all clients and one step, c_i is the client's gradient and c their mean, from the first round on; the second
    # round's c_i − c + (x − y_i)/η is then its gradient at the new model, whatever the correction was.
    plain = FedAvg().start(federation, State(first.state.cohort, first.state.global_weights))
    (after,) = run_rounds(federation, FedAvg(), plain, first_round=2, rounds=1)
    assert after.metrics["train_loss"] == pytest.approx(second.metrics["train_loss"], rel=1e-5)
    name, client = "fc2.weight", second.clients[0]
    model = federation.module.train()
    model.load_state_dict(dict(first.state.global_weights))
    indices = federation.client_indices[client]
    data = federation.data
    loss = torch.nn.functional.cross_entropy(
        model(data.normalise(data.train_images[indices])), data.train_labels[indices]
    )
    (gradient,) = torch.autograd.grad(loss, [model.fc2.weight])
    torch.testing.assert_close(second.state.tensors[f"client/{client:05d}/{name}"], gradient, rtol=1e-4, atol=1e-5)


def started(federation, algorithm):
    return algorithm.start(federation, initial_state(federation))
