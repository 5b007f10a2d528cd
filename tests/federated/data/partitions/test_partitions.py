from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from small_federation import make_data

from fedmr_merge.errors import DataError
from fedmr_merge.federated.catalogue import PARTITIONS
from fedmr_merge.federated.data.partitions.dirichlet import Dirichlet
from fedmr_merge.federated.data.partitions.file import File
from fedmr_merge.federated.data.partitions.iid import Iid
from fedmr_merge.federated.data.partitions.natural import Natural
from fedmr_merge.federated.data.partitions.quantity import Quantity
from fedmr_merge.federated.data.partitions.shards import Shards

label_lists = st.lists(st.integers(0, 3), min_size=1, max_size=120).map(np.array)


def assert_deals_out_everything(partition, examples, clients):
    assert len(partition) == clients
    assert np.sort(np.concatenate(partition.clients)).tolist() == list(range(examples))


@given(labels=label_lists, clients=st.integers(1, 12), seed=st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_iid_deals_out_everything_evenly(labels, clients, seed):
    data = make_data(labels, classes=4)
    if clients > len(labels):
        with pytest.raises(DataError, match=f"{clients} clients"):
            Iid(clients=clients).split(data, seed)
        return
    partition = Iid(clients=clients).split(data, seed)
    assert_deals_out_everything(partition, len(labels), clients)
    assert max(partition.sizes) - min(partition.sizes) <= 1


@given(
    labels=st.lists(st.integers(0, 3), min_size=72, max_size=150).map(np.array),
    alpha=st.sampled_from([1e-3, 0.1, 0.5, 10.0, 1e4]),
    clients=st.integers(1, 12),
    minimum=st.integers(1, 6),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=40, deadline=None)
def test_dirichlet_deals_out_everything_and_holds_the_minimum(labels, alpha, clients, minimum, seed):
    method = Dirichlet(alpha=alpha, clients=clients, min_examples=minimum)
    try:
        partition = method.split(make_data(labels, classes=4), seed)
    except DataError:
        # Not every alpha reaches every minimum: two tests below look at what is said then.
        event("refused")
        return
    assert_deals_out_everything(partition, len(labels), clients)
    assert min(partition.sizes) >= minimum


def test_dirichlet_cannot_give_more_than_there_is():
    with pytest.raises(DataError, match="39 training examples do not suffice for 4 clients with at least 10 each"):
        Dirichlet(clients=4, min_examples=10).split(make_data(np.arange(39) % 3), seed=0)


def test_dirichlet_says_when_alpha_is_too_small():
    with pytest.raises(DataError, match=r"alpha 0\.001"):
        Dirichlet(alpha=0.001, clients=10, min_examples=10).split(make_data(np.arange(100) % 2), seed=0)


def test_dirichlet_balances():
    # A client that is full gets none of a later class, so none holds more than a full share and one class's worth.
    labels = np.repeat(np.arange(10), 60)
    for seed in range(20):
        partition = Dirichlet(alpha=0.1, clients=6, min_examples=1).split(make_data(labels, classes=10), seed)
        assert max(partition.sizes) < 600 / 6 + 60


def test_dirichlet_gets_more_even_with_alpha():
    labels = np.repeat(np.arange(10), 200)

    def unevenness(alpha):
        partition = Dirichlet(alpha=alpha, clients=10).split(make_data(labels, classes=10), seed=0)
        counts = partition.class_counts(labels, 10)
        return np.abs(counts / counts.sum(axis=1, keepdims=True) - 0.1).mean()

    assert unevenness(0.1) > unevenness(1.0) > unevenness(1000.0)
    assert unevenness(1000.0) < 0.01


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=150).map(np.array),
    alpha=st.sampled_from([1e-3, 0.1, 0.5, 10.0, 1e4]),
    clients=st.integers(1, 12),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_dirichlet_of_hsu_deals_out_everything_to_clients_of_one_size(labels, alpha, clients, seed):
    method = Dirichlet(alpha=alpha, clients=clients, min_examples=1, form="hsu")
    data = make_data(labels, classes=4)
    if clients > len(labels):
        with pytest.raises(DataError, match=f"{clients} clients"):
            method.split(data, seed)
        return
    partition = method.split(data, seed)
    assert_deals_out_everything(partition, len(labels), clients)
    assert max(partition.sizes) - min(partition.sizes) <= 1


def test_dirichlet_of_hsu_follows_alpha():
    labels = np.repeat(np.arange(10), 200)
    data = make_data(labels, classes=10)

    def classes_known(alpha):
        partition = Dirichlet(alpha=alpha, clients=20, form="hsu").split(data, seed=0)
        # The first clients are the ones that find every class.
        return (partition.class_counts(labels, 10)[:8] > 5).sum(axis=1).mean()

    assert classes_known(0.1) < 3
    assert classes_known(0.1) < classes_known(1.0) < classes_known(100.0)
    assert classes_known(1000.0) > 9


@given(
    labels=label_lists,
    clients=st.integers(1, 12),
    shards=st.integers(1, 3),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=40, deadline=None)
def test_shards_deal_out_everything_and_a_client_knows_few_classes(labels, clients, shards, seed):
    method = Shards(clients=clients, shards_per_client=shards)
    data = make_data(labels, classes=4)
    if clients * shards > len(labels):
        with pytest.raises(DataError, match=f"{clients * shards} shards"):
            method.split(data, seed)
        return
    partition = method.split(data, seed)
    assert_deals_out_everything(partition, len(labels), clients)
    assert max(partition.sizes) - min(partition.sizes) <= shards


def test_shards_are_those_of_mcmahan():
    # 10 classes in 20 shards: a shard has one class, and a client of two shards knows one or two.
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
    partition = Shards(clients=10).split(make_data(labels, classes=10), seed=0)
    counts = partition.class_counts(labels, 10)
    assert set(partition.sizes) == {60}
    assert set(counts.ravel().tolist()) <= {0, 30, 60}
    assert (counts > 0).sum(axis=1).max() == 2


@given(
    examples=st.integers(1, 200),
    clients=st.integers(1, 12),
    minimum=st.integers(1, 20),
    exponent=st.sampled_from([0.01, 0.5, 1.0, 3.0]),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_quantity_deals_out_everything_and_holds_the_minimum(examples, clients, minimum, exponent, seed):
    method = Quantity(exponent=exponent, clients=clients, min_examples=minimum)
    data = make_data(np.arange(examples) % 3)
    if clients * minimum > examples:
        with pytest.raises(DataError, match=f"at least {minimum} each"):
            method.split(data, seed)
        return
    partition = method.split(data, seed)
    assert_deals_out_everything(partition, examples, clients)
    assert min(partition.sizes) >= minimum


def test_quantity_follows_the_power_law():
    partition = Quantity(exponent=1.0, clients=4, min_examples=10).split(make_data(np.arange(290) % 3), seed=1)
    # 250 beyond the minimum, in the ratio 12 : 6 : 4 : 3.
    assert sorted(partition.sizes, reverse=True) == [130, 70, 50, 40]
    assert {Quantity(clients=4).split(make_data(np.arange(290) % 3), seed).sizes[0] for seed in range(20)} == {
        130,
        70,
        50,
        40,
    }


@given(owners=st.lists(st.integers(0, 9), min_size=1, max_size=80).map(np.array), minimum=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_natural_gives_everyone_his_own(owners, minimum):
    data = replace(make_data(np.zeros(len(owners), np.int64)), train_clients=torch.from_numpy(owners))
    expected = [np.flatnonzero(owners == owner).tolist() for owner in np.unique(owners)]
    expected = [indices for indices in expected if len(indices) >= minimum]
    if not expected:
        with pytest.raises(DataError, match=f"at least {minimum} training examples"):
            Natural(min_examples=minimum).split(data, seed=0)
        return
    partition = Natural(min_examples=minimum).split(data, seed=0)
    assert [indices.tolist() for indices in partition.clients] == expected


def test_natural_needs_to_know_whose_example_is_whose():
    with pytest.raises(DataError, match="does not say whose example is whose"):
        Natural().split(make_data(), seed=0)


class TestFile:
    """A partition from a file."""

    @pytest.mark.parametrize(
        "value",
        [
            [[4, 0], [1, 2]],
            {"1": [1, 2], "0": [4, 0]},
            {"dataset": "cifar10", "num_users": 2, "iid": 1, "train_data": {"0": [4, 0], "1": [1, 2]}},
            {"format_version": 1, "clients": [[0, 4], [1, 2]]},
        ],
    )
    def test_is_read_in_each_form(self, tmp_path, value):
        file = tmp_path / "partition.json"
        file.write_text(json.dumps(value))
        partition = File(path=str(file)).split(make_data(), seed=0)
        assert [indices.tolist() for indices in partition.clients] == [[0, 4], [1, 2]]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not JSON"),
            ('{"1": [0], "2": [1]}', "numbered 0, 1, 2"),
            ("7", "list of lists of example numbers"),
            ("[[0], [0]]", "example 0 away more than once"),
            ("[[0], [40]]", "names training example 40, but there are only 40"),
        ],
    )
    def test_that_is_something_else_is_refused_by_name(self, tmp_path, text, message):
        file = tmp_path / "mine.json"
        file.write_text(text)
        with pytest.raises(DataError, match=rf"mine\.json: .*{message}"):
            File(path=str(file)).split(make_data(), seed=0)

    def test_that_is_not_there(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=rf"^{tmp_path}/nothing\.json: No such file"):
            File(path="nothing.json").split(make_data(), seed=0)


def test_data_on_other_machines_are_not_dealt_here():
    with pytest.raises(DataError, match="the clients' data are on their own machines") as error:
        PARTITIONS.find("nodes")(clients=3).split(make_data(), 0)
    assert "--on flower:NAME" in error.value.hint


@pytest.mark.parametrize("name", sorted({*PARTITIONS.names()} - {"nodes"}))
def test_contract(name, tmp_path):
    """A partition depends on data and seed alone, and gives nothing away twice."""
    (tmp_path / "partition.json").write_text("[[0, 2], [5]]")
    options = {"file": {"path": str(tmp_path / "partition.json")}}
    method = PARTITIONS.find(name)(**options.get(name, {}))
    assert method.name == name
    data = replace(make_data(np.arange(6000) % 5, classes=5), train_clients=torch.arange(6000) // 50)
    first, again, other = (method.split(data, seed) for seed in (3, 3, 4))
    assert first.to_json() == again.to_json()
    drawn = name not in ("file", "natural")
    assert (first.to_json() != other.to_json()) == drawn
    assert max(indices[-1] for indices in first.clients) < 6000
