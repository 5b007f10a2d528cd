"""Real SuperLinks and SuperNodes on 127.0.0.1: the same bytes as in one process, whatever is killed.

Every message of Flower starts a new process, so that these tests take minutes: `pytest -m flower -n 0 tests/flower`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_layouts import write_parquet
from small_runs import follow, models

from fedmr_merge.flower.certificates import make_node_key
from fedmr_merge.flower.doctor import examine
from fedmr_merge.flower.rehearsal import CONNECTION, Rehearsal
from fedmr_merge.flower.server import ServerOptions
from fedmr_merge.flower.submit import FailedRunError, submit
from fedmr_merge.recipe.schema import Recipe, parse_recipe, read_recipe

pytestmark = pytest.mark.flower

RECIPE = {
    "name": "two",
    "seed": 4,
    "data": {"name": "digits", "partition": {"kind": "dirichlet", "alpha": 0.5, "clients": 2}},
    "model": {"name": "cnn"},
    "training": {"clients_per_round": 2, "local_epochs": 1},
    "deployment": {"timeout_seconds": 240},
}
LONGEST_SECONDS = 900
TESTS = Path(__file__).parents[1]  #: has `half_model`


def of_a_rehearsal(folder: Path) -> list[int]:
    """Return the processes whose environment names a folder: those of Flower have their home in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"FLWR_HOME={folder}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def command(folder: Path) -> subprocess.Popen:
    """Type `run recipe.yaml --on flower` in a folder, with a folder of its own for temporary files."""
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "fedmr_merge", "run", "recipe.yaml", "--on", "flower"],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_rehearsal_that_is_killed_leaves_nothing_and_is_resumed_to_the_bytes_of_a_local_run(tmp_path):
    """FedAvg, FedMR, SCAFFOLD and FedGen, one after the other; killed in the middle of FedMR's rounds."""
    stages = [
        {"fedavg": {"rounds": 1}},
        {"fedmr": {"rounds": 2}},
        {"scaffold": {"rounds": 1}},
        {"fedgen": {"rounds": 2}},
    ]
    recipe = parse_recipe(RECIPE | {"stages": [*stages, {"evaluate": {}}]}, "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    follow(tmp_path / "local", recipe)
    run, metrics = tmp_path / "runs" / "two", tmp_path / "runs" / "two" / "metrics.jsonl"

    first = command(tmp_path)
    deadline = time.monotonic() + LONGEST_SECONDS
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2) and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert first.poll() is None, first.communicate()[0]
    assert of_a_rehearsal(tmp_path / "tmp")
    first.kill()
    first.wait()
    deadline = time.monotonic() + 30
    while (of_a_rehearsal(tmp_path / "tmp") or list((tmp_path / "tmp").iterdir())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert of_a_rehearsal(tmp_path / "tmp") == []
    assert list((tmp_path / "tmp").glob("fedmr-merge-flower-*")) == []

    second = command(tmp_path)
    output, _ = second.communicate(timeout=LONGEST_SECONDS)
    assert second.returncode == 0, output
    assert "nodes: 2 needed, 2 found" in output
    assert "resumed after round" in output
    assert of_a_rehearsal(tmp_path / "tmp") == []
    assert list((tmp_path / "tmp").glob("fedmr-merge-*")) == []
    assert models(run) == models(tmp_path / "local")
    for checkpoint in (tmp_path / "local" / "checkpoints").iterdir():
        for path in checkpoint.rglob("*.*"):
            assert (run / path.relative_to(tmp_path / "local")).read_bytes() == path.read_bytes(), path
    for name in ("lineage.jsonl", "partition.json", "evaluation.json", "recipe.yaml"):
        assert (run / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
    assert [line["round"] for line in lines(run, "deployment.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_fails_has_the_exit_code_and_the_words_of_a_local_one(tmp_path):
    recipe = parse_recipe(RECIPE | {"stages": [{"fedavg": {"rounds": 1}}]}, "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    other = parse_recipe(RECIPE | {"seed": 5, "stages": [{"fedavg": {"rounds": 1}}]}, "recipe.yaml")
    follow(tmp_path / "runs" / "two", other)
    failing = command(tmp_path)
    output, _ = failing.communicate(timeout=LONGEST_SECONDS)
    assert failing.returncode == 2, output
    assert "belongs to another recipe: seed: 5 → 4" in output
    assert "hint: choose another folder with --out" in output
    assert "Traceback" not in output


def serverapp_of(rehearsal: Rehearsal) -> int:
    """Return the process of the ServerApp."""
    [found] = [
        pid
        for pid in of_a_rehearsal(rehearsal.folder)
        if b"flwr-serverapp" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return found


def follow_at(recipe: Recipe, out: Path, on_round) -> None:
    for event in submit(recipe, CONNECTION, ServerOptions(out=str(out))):
        if event["event"] == "round":
            on_round(event)


def test_whatever_is_killed_the_run_continues_or_is_resumed(tmp_path):
    """The SuperLink in round 1, a node in round 2, the ServerApp once the node is back; a stranger is refused."""
    options = {"deployment": {"timeout_seconds": 150, "on_missing": "keep"}, "stages": [{"fedmr": {"rounds": 9}}]}
    recipe = parse_recipe(RECIPE | options, "recipe.yaml")
    killed: list[str] = []
    underway = 0  #: the round in which the node was killed, which it may have answered before

    def rounds_done() -> int:
        return len(lines(tmp_path / "run", "metrics.jsonl"))

    with Rehearsal(["client-0", "client-1"]) as running:
        running.add_node("stranger", make_node_key(running.folder, "stranger"))
        deadline = time.monotonic() + 120
        while running.supervisor.exit_code(running.node_pids["stranger"]) is None:
            assert time.monotonic() < deadline
            time.sleep(0.3)
        assert running.supervisor.exit_code(running.node_pids["stranger"]) != 0
        assert "stranger" not in running.online()
        checks = examine(CONNECTION)
        assert [check.subject for check in checks] == [
            *("flwr", "connection", "reachable", "certificate", "clock", "nodes")
        ]
        assert all(check.is_fine for check in checks), checks

        def on_round(event):
            nonlocal underway
            if not killed:
                running.supervisor.kill(running.superlink_pid)
                running.start_superlink()
                killed.append("the SuperLink")
            elif len(killed) == 1:
                running.supervisor.kill(running.node_pids["client-1"], tree=True)
                underway = rounds_done() + 1
                killed.append("a node")
            elif len(killed) == 2 and event["round"] <= underway and not event["missing"]:
                pass  # the log is read some time after it is written
            elif len(killed) == 2:
                assert event["missing"].keys() == {"1"}
                running.start_node("client-1")
                killed.append("the node is back")
            elif len(killed) == 3 and not event["missing"]:
                os.kill(serverapp_of(running), signal.SIGKILL)
                killed.append("the ServerApp")

        with pytest.raises(FailedRunError) as failure:
            follow_at(recipe, tmp_path / "run", on_round)
        assert killed[-1] == "the ServerApp", str(failure.value)
        follow_at(recipe, tmp_path / "run", lambda event: None)
    metrics = lines(tmp_path / "run", "metrics.jsonl")
    assert [line["round"] for line in metrics] == list(range(1, 10))
    missing = [line.get("missing", {}) for line in metrics]
    assert {client for line in missing for client in line} == {"1"}, missing
    assert metrics[0].get("missing", {}) == {}
    assert metrics[-1].get("missing", {}) == {}
    for line in lines(tmp_path / "run", "lineage.jsonl"):
        assert sorted(line["clients"]) == [0, 1]
    assert read_recipe(tmp_path / "run" / "recipe.yaml") == recipe


def test_clients_train_on_what_only_their_own_machine_has(tmp_path):
    """Each SuperNode is told by --node-config where its data are; the server has test examples of its own."""
    names = {"label": ("a", "b", "c")}
    for folder in ("client-0", "client-1", "server", "pooled"):
        sizes = {"client-0": (20,), "client-1": (13,), "server": (3,), "pooled": (20, 13)}[folder]
        labels = np.concatenate([np.arange(size) % 3 for size in sizes])
        owners = np.repeat(np.arange(len(sizes)), sizes)
        images = (70 * labels[:, None, None] + np.arange(64).reshape(8, 8) % 50).astype(np.uint8)
        write_parquet(tmp_path / folder / "train.parquet", {"image": images, "label": labels, "client": owners}, names)
        test = np.arange(12) % 3
        write_parquet(tmp_path / folder / "test.parquet", {"image": images[test], "label": labels[test]}, names)
    reader = {"name": "parquet", "normalisation": "half"}
    stages = {"stages": [{"fedmr": {"rounds": 1}}, {"evaluate": {}}]}
    apart = reader | {"path": "$NODE/scans", "partition": {"kind": "nodes", "clients": 2}}
    pooled = reader | {"path": str(tmp_path / "pooled"), "client_column": "client", "partition": {"kind": "natural"}}
    places = {"server": {"scans": str(tmp_path / "server")}, "rehearsal": {"scans": "$NAME"}}
    deployment = {"deployment": {"timeout_seconds": 300, **places}}
    recipe = parse_recipe(RECIPE | stages | {"data": apart} | deployment, "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    follow(tmp_path / "local", parse_recipe(RECIPE | stages | {"data": pooled}, "recipe.yaml"))
    running = command(tmp_path)
    output, _ = running.communicate(timeout=LONGEST_SECONDS)
    assert running.returncode == 0, output
    run = tmp_path / "runs" / "two"
    assert models(run) == models(tmp_path / "local")
    assert (run / "lineage.jsonl").read_bytes() == (tmp_path / "local" / "lineage.jsonl").read_bytes()


def test_a_large_model_travels_in_pieces(tmp_path):
    """100 MB of bfloat16, nearly all of it one tensor: Flower takes it apart into pieces of 5 MB."""
    model = {"name": "half_model:Half", "ballast": 50_000_000}
    changes = {"model": model, "training": RECIPE["training"] | {"batch_size": 1000}}
    recipe = parse_recipe(RECIPE | changes | {"stages": [{"fedavg": {"rounds": 1}}]}, "recipe.yaml")
    follow(tmp_path / "local", recipe)
    with Rehearsal(["client-0", "client-1"]):
        for _ in submit(recipe, CONNECTION, ServerOptions(out=str(tmp_path / "run")), [TESTS]):
            pass
    assert models(tmp_path / "run") == models(tmp_path / "local")
    [recorded] = lines(tmp_path / "run", "deployment.jsonl")
    assert recorded["bytes_sent"] == recorded["bytes_received"] > 200_000_000
