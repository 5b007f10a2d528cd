"""What an attacker finds in what a private run publishes: neither the key to its noise, nor who took part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import RECIPE, follow

from fedmr_merge.checkpoint.tensors import load_tensors
from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.catalogue import DATA_SETS
from fedmr_merge.runs.public import published_metrics
from fedmr_merge.seeds import derive_seed

pytest.importorskip("dp_accounting")

CLIP, NOISE = 0.5, 8.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round of one client, whose noise is most of what is published."""
    place = tmp_path_factory.mktemp("private")
    (place / "the.key").write_bytes(bytes(range(32)))
    privacy = {"clip": CLIP, "noise_multiplier": NOISE, "key_file": str(place / "the.key")}
    training = RECIPE["training"] | {"clients_per_round": 1, "privacy": privacy}
    stages = [{"fedavg": {"rounds": 1}}, {"publish": {"what": "both"}}]
    follow(place / "run", training=training, stages=stages)
    return place / "run"


def test_the_noise_cannot_be_drawn_again_from_what_is_published(folder: Path) -> None:
    """The attacker knows the recipe and its seed, and how 0.1.0 drew the noise of each client."""
    published = load_tensors(folder / "global" / "model.safetensors")
    noise_alone = NOISE * CLIP * sum(tensor.numel() for tensor in published.values()) ** 0.5
    seed = RECIPE["seed"]
    for client in range(8):
        drawn = torch.Generator().manual_seed(
            derive_seed(derive_seed(seed, "privacy noise", 1), "privacy noise of a client", client)
        )
        rest = [tensor - NOISE * CLIP * torch.randn(tensor.shape, generator=drawn) for tensor in published.values()]
        norm = torch.stack([part.square().sum() for part in rest]).sum().sqrt().item()
        assert norm > 1.3 * noise_alone  # two independent noises add up to 1.4 times one; the right one leaves 0.1


def test_neither_key_nor_clients_are_published(folder: Path) -> None:
    public = folder / "global"
    names = {path.name for path in public.rglob("*")}
    assert not names & {"lineage.jsonl", "partition.json", "partition.png", "the.key"}
    [line] = (folder / "lineage.jsonl").read_text().splitlines()  # at home it is known
    assert len(json.loads(line)["clients"]) == 1
    key = (folder.parent / "the.key").read_bytes()
    for path in public.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert key not in content
        assert b"the.key" not in content
        assert b"key_file" not in content
        assert str(folder.parent).encode() not in content


def test_the_card_says_what_epsilon_counts_on(folder: Path) -> None:
    card = (folder / "global" / "README.md").read_text()
    assert "differentially private at the level of clients" in card
    card = " ".join(card.split())
    assert "as long as nobody learns which clients took part" in card
    assert "that norm was added to each update, by the client. After" in card
    last = json.loads((folder / "global" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["epsilon"] < last["epsilon_to_server"]
    to_server = f"Against the server, which selects the clients, it is ε = {last['epsilon_to_server']:.3g}."
    assert f"what the noise was drawn from. {to_server} Secure aggregation was not used." in card


def test_the_card_of_a_central_run_says_that_the_server_is_trusted(tmp_path: Path) -> None:
    privacy = {"kind": "central", "clip": CLIP, "noise_multiplier": NOISE}
    training = RECIPE["training"] | {"clients_per_round": 2, "privacy": privacy}
    follow(tmp_path / "run", training=training, stages=[{"fedavg": {"rounds": 1}}, {"publish": {}}])
    card = " ".join((tmp_path / "run" / "global" / "README.md").read_text().split())
    assert "that norm was added once to the sum of a round's updates, by the server." in card
    assert (
        "what the noise was drawn from. It also assumes that the server, which saw the updates without noise, is"
        in card
    )


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of five clients of eight rows each; the last client is the only one older than 60."""
    place = tmp_path_factory.mktemp("patients")
    rows = [(f"clinic{i // 8}", 90.5 + i if i >= 32 else 20.25 + i, i % 2) for i in range(40)]
    for part in ("train", "test"):
        lines = [f"{clinic},{age},{ill}" for clinic, age, ill in rows]
        (place / f"{part}.csv").write_text("\n".join(["clinic,age,ill", *lines]))
    return place


def train_on(patients: Path, out: Path, data: dict[str, Any], privacy: dict[str, Any]) -> dict[str, Any]:
    table = {"name": "tabular", "path": str(patients), "target": "ill", "client_column": "clinic"}
    table |= {"partition": {"kind": "natural"}}
    training = {"clients_per_round": 2, "privacy": {"clip": CLIP, "noise_multiplier": NOISE, **privacy}}
    stages = [{"fedavg": {"rounds": 1}}, {"publish": {}}]
    follow(out, data=table | data, model={"name": "mlp"}, training=training, stages=stages)
    preprocess: dict[str, Any] = json.loads((out / "global" / "config.json").read_text())["preprocess"]
    return preprocess


def test_what_is_measured_on_the_clients_examples_is_refused(patients: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"measured on the examples of all clients .* epsilon does not cover") as no:
        train_on(patients, tmp_path / "run", {}, {})
    assert "data.normalisation half or imagenet for images, none for a table" in str(no.value.hint)
    assert not (tmp_path / "run").exists()


def test_an_attacker_who_knows_all_clients_but_one_finds_nothing_exact_of_it(patients: Path, tmp_path: Path) -> None:
    """With measured means the attacker gets the sum of the last client's ages by a subtraction; see below."""
    preprocess = train_on(patients, tmp_path / "run", {"normalisation": "none"}, {})
    assert preprocess == {"features": ["age"], "mean": [0.0], "std": [1.0]}
    ages = [float(line.split(",")[1]) for line in (patients / "train.csv").read_text().splitlines()[1:]]
    for path in (tmp_path / "run" / "global").glob("*.*"):
        assert all(f"{number:.2f}".encode() not in path.read_bytes() for number in (np.mean(ages), np.std(ages)))
    assert "ε does not cover them" not in (tmp_path / "run" / "global" / "README.md").read_text()


def test_who_accepts_that_it_is_published_is_told_on_the_card(patients: Path, tmp_path: Path) -> None:
    preprocess = train_on(patients, tmp_path / "run", {}, {"publish_measured": True})
    ages = [float(line.split(",")[1]) for line in (patients / "train.csv").read_text().splitlines()[1:]]
    assert 40 * preprocess["mean"][0] - sum(ages[:32]) == pytest.approx(sum(ages[32:]))  # what the attacker does
    card = (tmp_path / "run" / "global" / "README.md").read_text()
    assert "were measured on the examples of all clients, without noise: ε does not cover them" in card


def test_the_values_of_a_public_data_set_are_not_measured(folder: Path) -> None:
    assert json.loads((folder / "global" / "config.json").read_text())["preprocess"]["mean"] == [0.3053]
    assert "ε does not cover them" not in (folder / "global" / "README.md").read_text()
    assert [DATA_SETS.find(name)().load().measured for name in ("digits", "breast-cancer", "diabetes")] == [False] * 3


def test_held_out_examples_of_the_clients_are_said_to_be_theirs(patients: Path, tmp_path: Path) -> None:
    data = {"path": str(patients / "train.csv"), "test_split": None, "test_share": 0.25, "normalisation": "none"}
    train_on(patients, tmp_path / "run", data, {})
    card = (tmp_path / "run" / "global" / "README.md").read_text()
    assert "were held out of the clients' own, without noise: ε does not cover it" in card


def test_what_no_noise_covers_is_not_published(folder: Path) -> None:
    """The loss of the clients that trained is an exact figure of their data, outside of what epsilon counts."""
    [line] = (folder / "metrics.jsonl").read_text().splitlines()
    [public] = (folder / "global" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line).keys() - json.loads(public).keys() == {"train_loss"}


@pytest.mark.parametrize("private", [True, False])
def test_clients_that_did_not_answer_are_not_published_with_the_metrics(private: bool) -> None:
    """Not even where lineage and partition are: a reason names a node, or a path on it."""
    missing = {"7": "the client app failed there: FileNotFoundError: '/srv/scans/ward-3'", "3": "'berlin' is offline"}
    line = {"round": 1, "stage": 1, "method": "fedavg", "test_accuracy": 0.5, "seconds": 1.0}
    assert published_metrics([line | {"missing": missing}], private=private) == [line]


def test_the_card_does_not_promise_the_same_bytes_again(folder: Path) -> None:
    card = (folder / "global" / "README.md").read_text()
    assert "## Reproduce it" in card
    assert "byte for byte" not in card
    assert "drawn from a secret, not from the seed" in card
