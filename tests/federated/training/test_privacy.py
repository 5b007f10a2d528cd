from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from scipy import stats
from small_federation import Normalised, digest, make_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.clusamp import CluSamp
from fedmr_merge.federated.algorithms.fedavg import FedAvg
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.algorithms.independent import Independent
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.federation import Training
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import begin_stage, run_rounds
from fedmr_merge.federated.selection import uniform
from fedmr_merge.federated.training import privacy as module
from fedmr_merge.federated.training.privacy import Privacy, privatise, spent_epsilon
from fedmr_merge.federated.training.secret import Secret
from fedmr_merge.options import Faults, check_options

pytest.importorskip("dp_accounting")

QUIET = 1e-12  # a noise multiplier that leaves the clipping alone


def run(federation, algorithm, first=1, rounds=2, state=None):
    state = begin_stage(federation, algorithm, state or initial_state(federation))
    return list(run_rounds(federation, algorithm, state, first_round=first, rounds=rounds))


def test_updates_are_clipped_to_the_norm_by_hand():
    """Updates (3, 4) and (0.3, 0.4), over two tensors, of norms 5 and 0.5, clipped to 1."""
    sent = Cohort({"a": torch.ones(2, 1), "b": torch.zeros(2, 1), "n": torch.tensor([4, 5])})
    trained = Cohort({"a": torch.tensor([[4.0], [1.3]]), "b": torch.tensor([[4.0], [0.4]]), "n": torch.tensor([6, 7])})
    found = privatise(Privacy(clip=1.0, noise_multiplier=QUIET), sent, trained, ("a", "b"), Secret(b"key"), 1)
    torch.testing.assert_close(found.tensors["a"].flatten(), torch.tensor([1.6, 1.3]))
    torch.testing.assert_close(found.tensors["b"].flatten(), torch.tensor([0.8, 0.4]))
    assert found.tensors["n"].tolist() == [4, 5]
    assert trained.tensors["n"].tolist() == [6, 7]


def test_noise_has_the_deviation_that_is_asked_for_and_is_each_models_own():
    sent = Cohort({"w": torch.zeros(2, 40_000)})
    privacy = Privacy(clip=2.0, noise_multiplier=1.5)
    found = privatise(privacy, sent, sent, ("w",), Secret(b"key"), 1).tensors["w"]
    assert found.std(dim=1).tolist() == pytest.approx([3.0, 3.0], rel=0.02)
    assert found.mean(dim=1).tolist() == pytest.approx([0.0, 0.0], abs=0.06)
    assert abs(torch.corrcoef(found)[0, 1]) < 0.02
    assert torch.equal(privatise(privacy, sent, sent, ("w",), Secret(b"key"), 1).tensors["w"], found)
    for other in ((Secret(b"kez"), 1), (Secret(b"key"), 2), (Secret.of_this_process(), 1)):
        drawn = privatise(privacy, sent, sent, ("w",), *other).tensors["w"]
        assert abs(torch.corrcoef(torch.stack([drawn[0], found[0]]))[0, 1]) < 0.03


def test_the_noise_is_normal():
    """Kolmogorov and Smirnov: the largest distance to the normal distribution; and no number is infinite."""
    drawn = Secret(b"key").gaussian(torch.Size([100_001]), "test")
    assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-3
    assert drawn.isfinite().all()
    assert Secret(b"key").gaussian(torch.Size([]), "test").shape == ()


def test_a_private_run_is_repeated_with_its_key_file_and_not_without(tmp_path):
    (tmp_path / "key").write_bytes(bytes(range(64)))
    keyed = Privacy(clip=1.0, noise_multiplier=0.1, key_file=str(tmp_path / "key"))

    def ends(privacy, round=1):
        result = run(make_federation(privacy=privacy), Independent(), first=round, rounds=1)[0]
        return digest(result.state), result.clients

    assert ends(keyed) == ends(keyed)
    assert ends(keyed) != ends(keyed, round=2)
    unkeyed = Privacy(clip=1.0, noise_multiplier=0.1)
    assert ends(unkeyed)[0] != ends(unkeyed)[0]


@pytest.mark.parametrize("content", [None, b"", b"x" * 31])
def test_a_key_file_that_is_of_no_use_is_reported_at_the_start(content, tmp_path):
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(TrainingError, match=r"training\.privacy\.key_file: .*key") as caught:
        make_federation(privacy=Privacy(clip=1.0, noise_multiplier=0.1, key_file=str(tmp_path / "key")))
    assert "head -c 32 /dev/urandom" in caught.value.hint


def test_who_takes_part_is_not_decided_by_the_seed():
    """That the secret draws as the seed does in 40 rounds has a chance that never comes true."""
    plain, private = make_federation(), make_federation(privacy=Privacy(clip=1.0, noise_multiplier=1.0))
    drawn = [[uniform(federation, {}, round) for round in range(40)] for federation in (plain, private)]
    assert drawn[0] != drawn[1]
    assert drawn[1] == [uniform(private, {}, round) for round in range(40)]


def test_clients_that_a_method_chooses_are_not_hidden_and_one_drawn_twice_counts_twice():
    privacy = Privacy(clip=0.01, noise_multiplier=2.0)
    federation = make_federation(clients_per_round=2, privacy=privacy)
    found = run(federation, CluSamp(), rounds=3)
    models = sum(max(Counter(result.clients).values()) for result in found)
    clients = len(federation.partition)
    expected = spent_epsilon(privacy, clients=clients, selected=2, sampled_rounds=0, other_rounds=models)
    assert found[-1].metrics["epsilon"] == expected


def test_a_wide_clip_without_noise_changes_nothing_but_rounding():
    """Round robin has the same clients take part in both, whom a private run draws from its secret otherwise."""
    plain = run(make_federation(), FedMR(selection="round_robin"), rounds=1)[0].state
    private = make_federation(privacy=Privacy(clip=1e6, noise_multiplier=0.5e-12))
    state = run(private, Independent(selection="round_robin"), rounds=1)
    for name, tensor in state[0].state.global_weights.items():
        torch.testing.assert_close(tensor, plain.global_weights[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_every_method_can_be_private_and_says_what_it_spent(method):
    federation = make_federation(privacy=Privacy(clip=0.01, noise_multiplier=1.0))
    first, second = run(federation, ALGORITHMS.find(method)())
    assert 0 < first.metrics["epsilon"] < second.metrics["epsilon"] < math.inf


def test_epsilon_of_one_gaussian_round_by_the_formula():
    """Rényi: ε(α) = α/(2σ²) with σ = z/2 of the sensitivity 2S; at the best order, near ρ + 2√(ρ log 1/δ)."""
    found = spent_epsilon(
        Privacy(clip=1.0, noise_multiplier=8.0), clients=10, selected=3, sampled_rounds=0, other_rounds=1
    )
    rho = 1 / (2 * 4.0**2)
    assert found < rho + 2 * math.sqrt(rho * math.log(1e5))
    assert found == pytest.approx(rho + 2 * math.sqrt(rho * math.log(1e5)), rel=0.25)


def test_more_noise_fewer_rounds_and_smaller_samples_spend_less():
    def spent(z=1.0, clients=100, sampled=10, other=0):
        privacy = Privacy(clip=1.0, noise_multiplier=z)
        return spent_epsilon(privacy, clients=clients, selected=10, sampled_rounds=sampled, other_rounds=other)

    assert spent(z=2.0) < spent(z=1.0)
    assert spent(sampled=5) < spent(sampled=10)
    assert spent(clients=1000) < spent(clients=100) < spent(clients=10)
    # Without a sample nobody hides: as if the clients were told.
    assert spent(clients=10) == spent(sampled=0, other=10) > spent()


def test_only_uniform_sampling_hides_who_took_part():
    federation = make_federation(clients_per_round=1, privacy=Privacy(clip=0.01, noise_multiplier=2.0))
    spent = {
        selection: run(federation, FedAvg(selection=selection), rounds=3)[-1].metrics["epsilon"]
        for selection in ("uniform", "by_size", "round_robin")
    }
    assert spent["uniform"] < spent["by_size"] == spent["round_robin"]


def test_what_was_spent_outlives_a_stage():
    federation = make_federation(clients_per_round=2, privacy=Privacy(clip=0.01, noise_multiplier=2.0))
    straight = run(federation, FedAvg(), rounds=4)[-1].metrics["epsilon"]
    first = run(federation, FedAvg(), rounds=2)[-1]
    second = run(federation, FedMR(), first=3, rounds=2, state=first.state)[-1]
    assert second.metrics["epsilon"] == straight
    # A stage that was begun without what was spent takes the rounds before it at their full price.
    forgotten = FedMR().start(federation, first.state)
    *_, last = run_rounds(federation, FedMR(), forgotten, first_round=3, rounds=2)
    assert last.metrics["epsilon"] > straight


def test_by_loss_is_refused():
    federation = make_federation(privacy=Privacy(clip=1.0, noise_multiplier=1.0))
    with pytest.raises(TrainingError, match="does not cover selection by_loss"):
        run(federation, FedAvg(selection="by_loss"))


def test_a_model_with_statistics_is_refused():
    with pytest.raises(TrainingError, match=r"statistics norm\.running_mean would be sent without noise"):
        make_federation(Normalised(), privacy=Privacy(clip=1.0, noise_multiplier=1.0))


def test_a_missing_accountant_is_told_at_the_start(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(module.importlib, "import_module", missing)
    with pytest.raises(TrainingError, match="needs the package dp-accounting") as caught:
        make_federation(privacy=Privacy(clip=1.0, noise_multiplier=1.0))
    assert "fedmr-merge[privacy]" in caught.value.hint


def test_a_recipe_names_its_options():
    faults = Faults()
    values = check_options(Training, {"privacy": {"clip": 1.5, "noise_multiplier": 1.0}}, "training", faults)
    assert values["privacy"] == Privacy(clip=1.5, noise_multiplier=1.0, delta=1e-5)
    assert not faults
    check_options(Training, {"privacy": {"clip": 1.5, "noise_multiplier": 1.0, "sigma": 3}}, "training", faults)
    check_options(Training, {"privacy": {"clip": 0, "noise_multiplier": 1.0}}, "training", faults)
    assert [fault.path for fault in faults] == ["training.privacy.sigma", "training.privacy.clip"]
