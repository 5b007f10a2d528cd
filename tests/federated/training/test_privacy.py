from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

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
from fedmr_merge.federated.criteria import Similarity, Until
from fedmr_merge.federated.federation import Training
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import begin_stage, run_rounds
from fedmr_merge.federated.selection import uniform
from fedmr_merge.federated.training import privacy as module
from fedmr_merge.federated.training.local_training import Engine
from fedmr_merge.federated.training.privacy import Privacy, describe_privacy, private_mean, privatise, spent_epsilon
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


@pytest.mark.parametrize("add", [privatise, private_mean])
def test_runs_with_one_key_have_the_same_noise_on_the_same_models_alone(add):
    """Otherwise the difference of what two runs send would have no noise."""
    sent = Cohort({"w": torch.zeros(2, 20_000), "v": torch.zeros(2, 3)})
    privacy = Privacy(clip=1.0, noise_multiplier=1.0)

    def noise(trained, privacy=privacy):
        moved = Cohort({"w": sent.tensors["w"] + trained, "v": sent.tensors["v"]})
        return add(privacy, sent, moved, ("w", "v"), Secret(b"key"), 1).tensors

    one, same = noise(0.0), noise(0.0)
    assert all(torch.equal(one[name], same[name]) for name in one)
    for other in (noise(1e-9), noise(0.0, Privacy(clip=1.0, noise_multiplier=2.0))):
        assert abs(torch.corrcoef(torch.stack([one["w"][0], other["w"][0]]))[0, 1]) < 0.04
        assert not torch.isclose(one["v"], other["v"]).any()


def test_runs_with_one_key_select_the_same_clients_for_the_same_model_alone(tmp_path):
    (tmp_path / "key").write_bytes(bytes(range(64)))
    privacy = Privacy(clip=1.0, noise_multiplier=1.0, key_file=str(tmp_path / "key"))
    federations = [make_federation(privacy=privacy) for _ in range(2)]
    models = [{"w": torch.tensor([value])} for value in (0.5, 0.5, 0.75)]
    drawn = [
        [uniform(federation, model, round) for round in range(40)] for federation in federations for model in models
    ]
    assert drawn[0] == drawn[1] == drawn[3] == drawn[4]
    assert drawn[0] != drawn[2] == drawn[5]


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
def test_a_key_file_that_is_of_no_use_is_reported_at_the_start(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(TrainingError, match=rf"training\.privacy\.key_file: {tmp_path}/key: ") as caught:
        make_federation(privacy=Privacy(clip=1.0, noise_multiplier=0.1, key_file="key"))
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


def test_the_server_knows_who_took_part():
    """It selects the clients: against it every round counts in full, whatever the selection."""
    spent = {}
    for kind in ("local", "central"):
        federation = make_federation(clients_per_round=1, privacy=Privacy(clip=0.01, noise_multiplier=2.0, kind=kind))
        for selection in ("uniform", "round_robin"):
            spent[kind, selection] = run(federation, FedAvg(selection=selection), rounds=3)[-1].metrics
    uniform, known = spent["local", "uniform"], spent["local", "round_robin"]
    assert uniform["epsilon"] < uniform["epsilon_to_server"] == known["epsilon"] == known["epsilon_to_server"]
    assert spent["central", "uniform"]["epsilon"] == uniform["epsilon"]
    assert "epsilon_to_server" not in spent["central", "uniform"]


@pytest.mark.parametrize("kind", ["local", "central"])
@pytest.mark.parametrize(("z", "rounds"), [(8.0, 1), (20.0, 30), (2.0, 1)])
def test_epsilon_is_that_of_the_known_accountants(kind, z, rounds):
    """The Renyi divergence αT/(2σ²) with σ = z/2, converted as in Canonne, Kamath and Steinke 2020 (proposition 12),
    minimised over orders; and above the exact curve of the Gaussian mechanism: Balle and Wang 2018, theorem 8.
    """
    delta, mu = 1e-5, 2 * math.sqrt(rounds) / z
    orders = [1 + place / 100 for place in range(1, 50_000)]
    renyi = min(a * mu**2 / 2 + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a in orders)
    privacy = Privacy(clip=3.0, noise_multiplier=z, kind=kind, delta=delta)
    found = spent_epsilon(privacy, clients=10, selected=3, sampled_rounds=0, other_rounds=rounds)
    assert renyi <= found * (1 + 1e-9)
    assert found == pytest.approx(renyi, rel=0.01)
    normal = stats.norm.cdf
    exact = normal(mu / 2 - found / mu) - math.exp(found) * normal(-mu / 2 - found / mu)
    assert 0.01 * delta < exact < delta


def test_the_mean_of_a_central_round_by_hand():
    """Updates (3, 4) and (0.3, 0.4) of norms 5 and 0.5, clipped to 1, over models that need not be alike."""
    sent = Cohort({"a": torch.tensor([[1.0], [3.0]]), "b": torch.zeros(2, 1), "n": torch.tensor([4, 4])})
    trained = Cohort({"a": torch.tensor([[4.0], [3.3]]), "b": torch.tensor([[4.0], [0.4]]), "n": torch.tensor([6, 7])})
    privacy = Privacy(clip=1.0, noise_multiplier=QUIET, kind="central")
    found = private_mean(privacy, sent, trained, ("a", "b"), Secret(b"key"), 1)
    assert found.slots == 2
    torch.testing.assert_close(found.tensors["a"].flatten(), torch.full((2,), 2 + (0.6 + 0.3) / 2))
    torch.testing.assert_close(found.tensors["b"].flatten(), torch.full((2,), (0.8 + 0.4) / 2))
    assert found.tensors["n"].tolist() == [4, 4]


def test_central_noise_is_that_of_the_sum_once():
    sent = Cohort({"w": torch.zeros(4, 40_000)})
    privacy = Privacy(clip=2.0, noise_multiplier=1.5, kind="central")

    def noise(key=b"key", round=1):
        return private_mean(privacy, sent, sent, ("w",), Secret(key), round).tensors["w"]

    found = noise()
    assert torch.equal(found[0], found[3])
    assert float(found[0].std()) == pytest.approx(3.0 / 4, rel=0.02)
    assert torch.equal(noise(), found)
    local = privatise(privacy, sent, sent, ("w",), Secret(b"key"), 1).tensors["w"]
    for other in (noise(b"kez"), noise(round=2), local):
        assert abs(torch.corrcoef(torch.stack([other[0], found[0]]))[0, 1]) < 0.03


@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_a_central_run_shows_a_method_the_mean_alone_or_refuses_it(method):
    """Without noise, a method that passes is where it is when it sees every model, its clients weighing the same."""
    algorithm = ALGORITHMS.find(method)()
    central = make_federation(privacy=Privacy(clip=1e6, noise_multiplier=0.5e-12, kind="central"))
    if algorithm.why_single_models is not None:
        with pytest.raises(TrainingError, match=f"in their sum, and {method} {algorithm.why_single_models}"):
            run(central, algorithm)
        return
    seen = run(central, algorithm, rounds=2)
    clients = [result.clients for result in seen]
    assert "similarity" not in seen[0].metrics
    assert 0 < seen[0].metrics["epsilon"] < seen[1].metrics["epsilon"]

    class Chosen(type(algorithm)):
        def select(self, federation, state, round):
            return clients[round - 1]

        def aggregate(self, federation, state, trained, round):
            return super().aggregate(federation, state, replace(trained, examples=(1,) * len(trained.clients)), round)

    plain = run(make_federation(), Chosen(), rounds=1)
    pair = seen[0].state.global_weights, plain[0].state.global_weights
    torch.testing.assert_close(*map(dict, pair), rtol=1e-4, atol=1e-5)
    pair = seen[0].state.cohort.tensors, plain[0].state.cohort.tensors
    torch.testing.assert_close(*map(dict, pair), rtol=1e-3, atol=1e-4)


def test_a_client_that_diverges_counts_as_an_update_of_nothing_in_a_central_run():
    privacy = Privacy(clip=1.0, noise_multiplier=QUIET, kind="central")
    with pytest.raises(
        TrainingError, match=r"divides by the number of clients, which training\.on_divergence drop lowers"
    ):
        make_federation(privacy=privacy, on_divergence="drop")
    whole = make_federation(privacy=privacy, on_divergence="keep")

    class Broken(Engine):
        def train(self, task):
            tensors = {name: tensor + 1e-3 for name, tensor in task.cohort.tensors.items()}
            first = next(iter(tensors))
            tensors[first] = tensors[first].clone()
            tensors[first][0] = math.nan
            return Cohort(tensors), [1.0] * task.cohort.slots

    start = begin_stage(whole, FedAvg(), initial_state(whole))
    (result,) = run_rounds(whole, FedAvg(), start, first_round=1, rounds=1, engine=Broken())
    moved = {name: tensor - start.global_weights[name] for name, tensor in result.state.global_weights.items()}
    for tensor in moved.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 1e-3 * 2 / 3), rtol=1e-2, atol=1e-6)


def test_the_similarity_of_models_that_nobody_sees_ends_no_stage():
    federation = make_federation(privacy=Privacy(clip=1.0, noise_multiplier=1.0, kind="central"))
    with pytest.raises(TrainingError, match="shows their mean alone"):
        Until(similarity=Similarity(above=0.9)).check(federation)


def test_who_must_be_trusted_is_said():
    local, central = (Privacy(clip=2.0, noise_multiplier=1.5, kind=kind) for kind in ("local", "central"))
    line = describe_privacy(local, 4)
    assert "adds noise of standard deviation 3; the server does not have to be trusted" in line
    assert "epsilon_to_server is what is spent against the server" in line
    line = describe_privacy(central, 4)
    assert "noise of standard deviation 3 once to the sum of 4 updates" in line
    assert "trusted, or that secure aggregation shows it the sum alone" in line


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
