"""Data that stay at the nodes: the same bytes as with all data in one place, and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_layouts import write_parquet
from small_run import command
from small_runs import follow, models
from stand_in_grid import StandInGrid

from fedmr_merge.cli.flower import _rehearsed_nodes
from fedmr_merge.errors import DataError, FedmrMergeError, TrainingError
from fedmr_merge.flower.client import answer, answer_question
from fedmr_merge.flower.node_data import (
    Outline,
    ServerData,
    form_of,
    outline_of,
    rehearsed_federation,
    with_paths,
)
from fedmr_merge.flower.server import ServerOptions, serve
from fedmr_merge.flower.wire import QUERY
from fedmr_merge.recipe.schema import parse_recipe

CLASSES = ("a", "b", "c")
SIZES = (20, 13, 31)


def write_split(folder: Path, split: str, labels: np.ndarray, seed: int, owner: int | None = None) -> None:
    images = _images(labels, seed)
    columns = {"image": images, "label": labels}
    if owner is not None:
        columns["client"] = np.full(len(labels), owner)
    write_parquet(folder / f"{split}.parquet", columns, {"label": CLASSES})


def _images(labels: np.ndarray, seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 90, size=(len(labels), 8, 8))
    return (pixels + 60 * labels[:, None, None]).astype(np.uint8)


@pytest.fixture
def machines(tmp_path) -> Path:
    """Three clients and a server, each with a folder of its own, and one with everything."""
    test = np.arange(30) % 3
    everything = {"image": [], "label": [], "client": []}
    for client, size in enumerate(SIZES):
        labels = np.random.default_rng(client).permutation(np.arange(size) % 3)
        folder = tmp_path / f"client-{client}"
        write_split(folder, "train", labels, client)
        write_split(folder, "test", test[:3], 90)
        for name, values in (("image", _images(labels, client)), ("label", labels), ("client", np.full(size, client))):
            everything[name].append(values)
    columns = {name: np.concatenate(values) for name, values in everything.items()}
    write_parquet(tmp_path / "everything" / "train.parquet", columns, {"label": CLASSES})
    for folder in ("everything", "server"):
        write_split(tmp_path / folder, "test", test, 91)
    write_split(tmp_path / "server", "train", test[:3], 92)
    return tmp_path


def recipe(machines: Path, **changes):
    data = {
        "name": "parquet",
        "path": "$NODE/data",
        "normalisation": "half",
        "partition": {"kind": "nodes", "clients": 3},
    }
    content = {
        "name": "apart",
        "seed": 3,
        "data": data,
        "model": {"name": "cnn"},
        "training": {"clients_per_round": 2, "local_epochs": 2, "batch_size": 8, "lr": 0.02},
        "stages": [{"fedavg": {"rounds": 1}}, {"fedmr": {"rounds": 2}}, {"evaluate": {}}],
        "deployment": {"timeout_seconds": 0.2, "server": {"data": str(machines / "server")}},
    }
    return parse_recipe(content | changes, "recipe.yaml")


def nodes(checked, machines: Path, change=lambda folder: folder):
    """Return a node for each client, which has its data in a folder of its own."""
    from flwr.app import Message

    def node(client):
        configuration = {"data": str(machines / f"client-{client}")}

        def deliver(message):
            answered = answer_question if message.metadata.message_type == QUERY else answer
            return [Message(change(answered(message.content, checked, configuration)), reply_to=message)]

        return deliver

    return {f"client-{client}": node(client) for client in range(3)}


def run(checked, machines: Path, grid: StandInGrid) -> list[dict]:
    (machines / "recipe.yaml").write_text(checked.to_yaml())
    events = []
    serve(grid, machines / "recipe.yaml", ServerOptions(out=str(machines / "run")), events.append)
    return events


def test_data_apart_give_the_bytes_of_data_in_one_place(machines):
    checked = recipe(machines)
    together = {"name": "parquet", "path": str(machines / "everything"), "client_column": "client"}
    pooled = recipe(machines, data=together | {"normalisation": "half", "partition": {"kind": "natural"}})
    follow(machines / "pooled", pooled)
    events = run(checked, machines, StandInGrid(nodes(checked, machines)))
    assert [event["event"] for event in events] == ["begun", "nodes", "round", "round", "round", "stage", "done"]
    assert models(machines / "run") == models(machines / "pooled")
    for name in ("lineage.jsonl", "partition.json", "evaluation.json"):
        assert (machines / "run" / name).read_bytes() == (machines / "pooled" / name).read_bytes(), name


def test_a_run_is_resumed_with_the_same_data_and_with_no_other(machines):
    short = recipe(machines, stages=[{"fedavg": {"rounds": 1}}])
    run(short, machines, StandInGrid(nodes(short, machines)))
    write_split(machines / "client-1", "train", np.arange(5) % 3, 1)
    with pytest.raises(DataError, match="a client has 5 training examples, and had 13 when the run began"):
        run(short, machines, StandInGrid(nodes(short, machines)))


def test_nothing_but_numbers_of_examples_is_sent_of_the_data(machines):
    checked = recipe(machines)
    said = []

    def listen(content):
        if "model" not in content:
            said.append(json.loads(content["facts"]["data"]))
        return content

    run(checked, machines, StandInGrid(nodes(checked, machines, listen)))
    assert [sum(each["counts"]) for each in said] == list(SIZES)
    assert all(each.keys() == {"counts", "form"} for each in said)
    assert all(each["form"].keys() == {"kind", "shape", "classes", "preprocess"} for each in said)


def test_a_client_that_claims_other_counts_later_is_refused(machines):
    checked = recipe(machines, stages=[{"fedmr": {"rounds": 1}}], training={"clients_per_round": 3, "local_epochs": 1})

    def lie(content):
        if "model" in content and content["facts"]["client"] == 1:
            content["facts"]["examples"] = 5000
        return content

    run(checked, machines, StandInGrid(nodes(checked, machines, lie)))
    [metrics] = [json.loads(line) for line in (machines / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics["missing"] == {"1": "the reply is refused: the client claims 5000 examples, and 13 are expected"}


def test_a_machine_that_does_not_answer_is_named_before_the_first_round(machines):
    checked = recipe(machines)
    events = []
    (machines / "recipe.yaml").write_text(checked.to_yaml())
    grid = StandInGrid(nodes(checked, machines) | {"client-2": lambda message: []})
    with pytest.raises(FedmrMergeError):
        serve(grid, machines / "recipe.yaml", ServerOptions(out=str(machines / "run")), events.append)
    assert events[-1]["message"].startswith("client 2 does not describe its data: no reply within 0.2 seconds")
    assert not (machines / "run").exists()


def test_machines_that_normalise_differently_are_refused(machines):
    """By default what is subtracted is measured, and every machine would measure something else."""
    data = {"name": "parquet", "path": "$NODE/data", "partition": {"kind": "nodes", "clients": 3}}
    checked = recipe(machines, data=data)
    with pytest.raises(DataError, match="client 0 has other data: preprocess is") as error:
        run(checked, machines, StandInGrid(nodes(checked, machines)))
    assert "name a normalisation in the recipe" in error.value.hint


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"counts": [1, 2]}, "claims .1, 2. as its numbers of examples"),
        ({"counts": [1, 2, -3]}, "as its numbers of examples"),
        ({"counts": [1, 2, True]}, "as its numbers of examples"),
        ({"counts": [50, 0, 51]}, "client 4 claims 101 training examples, and deployment.most_examples is 100"),
        ({"counts": [1, 2, 1 << 40]}, "as its numbers of examples"),
        ({"counts": [0, 0, 0]}, "client 4 has no training examples"),
        ({"form": 5}, "in a form that is not known"),
        ({"counts": "many"}, "in a form that is not known"),
        ({"form": {"kind": "tokens"}}, "client 4 has other data: kind is tokens, here images"),
    ],
)
def test_a_description_is_checked(machines, claim, message):
    own = with_paths(recipe(machines), {"data": str(machines / "server")}, "x").data.load()
    with pytest.raises(DataError, match=message):
        outline_of({"counts": [1, 2, 3], "form": form_of(own)} | claim, own, 4, 100)


def test_a_client_may_have_as_many_examples_as_the_recipe_says(machines):
    """The server makes room for every example that a client claims, and weighs its model by them."""
    places = {"timeout_seconds": 0.2, "server": {"data": str(machines / "server")}}
    stages = [{"fedavg": {"rounds": 1}}]
    checked = recipe(machines, stages=stages, deployment={**places, "most_examples": max(SIZES)})
    run(checked, machines, StandInGrid(nodes(checked, machines)))
    checked = recipe(machines, stages=stages, deployment={**places, "most_examples": max(SIZES) - 1})
    with pytest.raises(DataError, match=r"client 2 claims 31 training examples, and deployment.most_examples is 30"):
        run(checked, machines, StandInGrid(nodes(checked, machines)))


def test_the_server_has_outlines_in_the_place_of_examples(machines):
    own = with_paths(recipe(machines), {"data": str(machines / "server")}, "x").data.load()
    data = ServerData(own, [Outline((2, 0, 1)), Outline((0, 3, 0))])
    assert data.targets("train").tolist() == [0, 0, 2, 1, 1, 1]
    assert [list(part) for part in data.partition().clients] == [[0, 1, 2], [3, 4, 5]]
    assert data.class_names == CLASSES


def test_a_name_of_a_client_that_the_recipe_does_not_have_is_reported_before_the_first_round(machines):
    names = {"client-0": 0, "client-1": 1, "client-2": 2, "client-3": 3}
    options = {"timeout_seconds": 0.2, "server": {"data": str(machines / "server")}, "clients": names}
    checked = recipe(machines, deployment=options)
    with pytest.raises(TrainingError, match="'client-3' is client 3, and the recipe has 3 clients"):
        run(checked, machines, StandInGrid(nodes(checked, machines)))


def test_a_client_for_which_no_node_is_named_is_reported(machines):
    options = {"timeout_seconds": 0.2, "server": {"data": str(machines / "server")}}
    checked = recipe(machines, deployment=options | {"clients": {"client-0": 0, "client-1": 1}})
    words = "client 2 does not describe its data: the recipe's deployment.clients names no node for it"
    with pytest.raises(DataError, match=words) as error:
        run(checked, machines, StandInGrid(nodes(checked, machines)))
    assert error.value.client == 2


@pytest.mark.parametrize("stage", [{"recalibrate": {}}, {"fedavg": {"rounds": 1, "selection": "by_loss"}}])
def test_a_stage_that_needs_the_data_themselves_is_refused(machines, stage):
    checked = recipe(machines, stages=[{"fedavg": {"rounds": 1}}, stage])
    with pytest.raises(TrainingError, match=r"stages\[1\].* needs the clients' data"):
        run(checked, machines, StandInGrid(nodes(checked, machines)))


def test_validation_that_the_server_cannot_measure_is_refused(machines):
    checked = recipe(machines, training={"clients_per_round": 2, "validation_share": 0.2})
    with pytest.raises(TrainingError, match="validation_share is measured by the server, and the clients' data are on"):
        run(checked, machines, StandInGrid(nodes(checked, machines)))


def test_a_key_that_a_machine_lacks_is_named(machines):
    with pytest.raises(DataError, match=r"data.path is '\$NODE/data', and this node's --node-config has no 'data'"):
        with_paths(recipe(machines), {"scans": "/srv"}, "this node's --node-config")


def test_such_a_recipe_is_not_run_in_one_process(machines, monkeypatch, capsys):
    (machines / "recipe.yaml").write_text(recipe(machines).to_yaml())
    monkeypatch.chdir(machines)
    assert command("run", "recipe.yaml") == 2
    assert "no such folder" in capsys.readouterr().err
    assert command("run", "recipe.yaml", "--on", "flower") == 2
    said = capsys.readouterr().err
    assert "the recipe's are on the clients' machines" in said
    assert "deployment.rehearsal" in said


def rehearsed(machines: Path, **deployment):
    places = {"server": {"data": str(machines / "server")}, "rehearsal": {"data": "$NAME"}}
    return recipe(machines, deployment={"timeout_seconds": 0.2, **places, **deployment})


def test_in_a_rehearsal_each_node_gets_a_folder_by_its_name(machines, monkeypatch):
    monkeypatch.chdir(machines)
    checked = rehearsed(machines, clients={"berlin": 1, "client-0": 0, "client-2": 2})
    (machines / "client-1").rename(machines / "berlin")
    nodes = _rehearsed_nodes(checked)
    assert nodes == {name: f'data="{machines / name}"' for name in ("client-0", "berlin", "client-2")}
    federation = rehearsed_federation(checked, {0: "client-0", 1: "berlin", 2: "client-2"})
    assert federation.partition.sizes == SIZES


def test_folders_that_are_not_there_or_do_not_fit_are_reported_before_a_process_is_started(
    machines, monkeypatch, capsys
):
    monkeypatch.chdir(machines)
    (machines / "recipe.yaml").write_text(rehearsed(machines, rehearsal={"data": "parts/$NAME"}).to_yaml())
    assert command("run", "recipe.yaml", "--on", "flower") == 2
    assert "parts/client-0" in capsys.readouterr().err
    columns = {"image": np.zeros((4, 9, 9), np.uint8), "label": np.arange(4) % 3}
    for split in ("train", "test"):
        write_parquet(machines / "client-1" / f"{split}.parquet", columns, {"label": CLASSES})
    (machines / "recipe.yaml").write_text(rehearsed(machines).to_yaml())
    assert command("run", "recipe.yaml", "--on", "flower") == 2
    assert "client 1 has other data: shape is [1, 9, 9], here [1, 8, 8]" in capsys.readouterr().err
    assert not (machines / "runs").exists()
