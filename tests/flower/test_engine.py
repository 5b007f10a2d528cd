"""The engine against a stand-in for `Grid`: the same bytes as in one process, and clients that do not answer."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import follow, models, recipe
from stand_in_grid import StandInGrid, everybody, honest

from fedmr_merge.errors import RunError, TrainingError
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.flower.client import answer
from fedmr_merge.flower.engine import FlowerEngine
from fedmr_merge.flower.handle_cohort import HandleCohort
from fedmr_merge.recipe.run import Run
from fedmr_merge.runs.names import DEPLOYMENT, LINEAGE, METRICS

CLIENTS = 4


def small(method: str = "fedmr", rounds: int = 2, on_missing: str = "keep", **changes):
    training = {"clients_per_round": 3, "local_epochs": 1, "batch_size": 100} | changes.pop("training", {})
    return recipe(
        data={"name": "digits", "partition": {"kind": "iid", "clients": CLIENTS}},
        training=training,
        stages=[{method: {"rounds": rounds} | changes.pop("options", {})}],
        deployment={"timeout_seconds": 0.05, "on_missing": on_missing},
        **changes,
    )


def on_nodes(folder: Path, checked, nodes=None, offline=()) -> StandInGrid:
    grid = StandInGrid(nodes or everybody(checked, CLIENTS), offline)
    follow(folder, checked, engine=FlowerEngine(grid, checked))
    return grid


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def silent(_message):
    return []


@pytest.mark.parametrize("method", ["fedavg", "fedmr", "scaffold", "fedgen", "moon", "clusamp"])
def test_a_run_over_nodes_has_the_bytes_of_one_in_one_process(tmp_path, method):
    checked = small(method, training={"stragglers": {"share": 0.4, "steps": 2}, "availability": 0.9})
    assert method in ALGORITHMS
    follow(tmp_path / "here", checked)
    on_nodes(tmp_path / "nodes", checked)
    assert models(tmp_path / "nodes") == models(tmp_path / "here")
    assert (tmp_path / "nodes" / LINEAGE).read_bytes() == (tmp_path / "here" / LINEAGE).read_bytes()
    for here, nodes in zip(lines(tmp_path / "here", METRICS), lines(tmp_path / "nodes", METRICS), strict=True):
        assert {**here, "seconds": 0} == {**nodes, "seconds": 0}


def test_a_run_continues_over_nodes_what_began_in_one_process(tmp_path):
    checked = small("fedmr", 3)
    follow(tmp_path / "whole", checked)
    with Run(checked, tmp_path / "mixed") as run:
        next(iter(run.execute()))
    on_nodes(tmp_path / "mixed", checked)
    assert models(tmp_path / "mixed") == models(tmp_path / "whole")
    assert [line["round"] for line in lines(tmp_path / "mixed", DEPLOYMENT)] == [2, 3]


def test_the_recombined_models_are_the_arrays_that_came_in(tmp_path):
    checked = small("fedmr", 1)
    with Run(checked, tmp_path, engine=FlowerEngine(StandInGrid(everybody(checked, CLIENTS)), checked)) as run:
        [done] = run.execute()
    cohort = done.result.state.cohort
    assert isinstance(cohort, HandleCohort)
    [recorded] = lines(tmp_path, DEPLOYMENT)
    assert recorded["next_models"] == list(cohort.content)
    # Undone, they are what the nodes sent, by content.
    groups = run.recipe.stages[0].method._groups(run.federation, cohort)
    assert [entry["sha256"] for entry in recorded["trained"]] == list(
        cohort.recombined(done.result.plan.inverse(), groups).content
    )


@pytest.mark.parametrize("method", ["fedavg", "fedmr"])
def test_a_client_without_an_answer_keeps_its_slot_or_does_not_count(tmp_path, method):
    """As a client that `training.availability` makes absent."""
    checked = small(method, 2)
    grid = on_nodes(tmp_path, checked, everybody(checked, CLIENTS) | {"client-1": silent})
    assert len(grid.sent) == 6
    for metrics, lineage in zip(lines(tmp_path, METRICS), lines(tmp_path, LINEAGE), strict=True):
        gone = [1] if 1 in lineage["clients"] else []
        assert lineage.get("absent", []) == gone
        assert metrics.get("missing", {}) == dict.fromkeys(map(str, gone), "no reply within 0.05 seconds")
        assert metrics["bytes_up"] * 3 == metrics["bytes_down"] * (3 - len(gone))


def test_a_slot_without_an_answer_holds_what_was_dispatched(tmp_path):
    checked = small("independent", 1)
    on_nodes(tmp_path, checked, {"client-0": honest(checked)} | {f"client-{i}": silent for i in (1, 2, 3)})
    with Run(checked, tmp_path / "other") as run:
        initial = run.federation.module.state_dict()
    with Run(checked, tmp_path) as run:
        slots = run._resumed.state.cohort
    [lineage] = lines(tmp_path, LINEAGE)
    for slot, client in enumerate(lineage["clients"]):
        kept = all(torch.equal(slots.slot(slot)[name], tensor) for name, tensor in initial.items())
        assert kept == (client != 0)


def test_another_client_is_asked_in_the_place_of_one_that_is_missing(tmp_path):
    checked = small("scaffold", 3, on_missing="resample")
    nodes = everybody(checked, CLIENTS)
    grid = on_nodes(tmp_path, checked, nodes, offline=("client-2",))
    for lineage, recorded in zip(lines(tmp_path, LINEAGE), lines(tmp_path, DEPLOYMENT), strict=True):
        assert 2 not in lineage["clients"]
        assert sorted(lineage["clients"]) == [0, 1, 3]
        assert "absent" not in lineage
        assert set(recorded.get("replaced", {})) <= {"2"}
    assert len(grid.sent) == 9


def test_where_nobody_is_left_to_ask_the_slot_is_kept(tmp_path):
    checked = small("fedmr", 1, on_missing="resample")
    on_nodes(tmp_path, checked, offline=("client-1", "client-2"))
    [metrics] = lines(tmp_path, METRICS)
    assert len(metrics["missing"]) == 1
    assert "is not online" in next(iter(metrics["missing"].values()))


def test_a_run_that_must_not_miss_a_client_ends_and_is_resumed(tmp_path):
    checked = small("fedmr", 3, on_missing="fail")
    follow(tmp_path / "here", checked)
    nodes = everybody(checked, CLIENTS)

    def dies_in_round_2(message):
        return nodes["client-3"](message) if message.metadata.group_id == "1" else []

    with pytest.raises(TrainingError, match=r"client \d is missing in round 2: no reply within") as error:
        on_nodes(tmp_path / "nodes", checked, dict.fromkeys(nodes, dies_in_round_2))
    assert "the same command resumes" in error.value.hint
    on_nodes(tmp_path / "nodes", checked)
    assert models(tmp_path / "nodes") == models(tmp_path / "here")


def test_nodes_are_bound_to_clients_by_their_registered_names(tmp_path):
    checked = small("fedavg", 1)
    named = {"berlin": 0, "paris": 1, "rome": 2, "oslo": 3}
    changed = small("fedavg", 1)
    changed = replace(changed, deployment=replace(changed.deployment, clients=named))
    follow(tmp_path / "here", checked)
    on_nodes(tmp_path / "nodes", changed, {name: honest(changed) for name in named})
    assert models(tmp_path / "nodes") == models(tmp_path / "here")
    [recorded] = lines(tmp_path / "nodes", DEPLOYMENT)
    assert all(named[entry["node"]] == entry["client"] for entry in recorded["trained"])


def test_a_disk_that_is_full_while_replies_come_in_is_named_with_what_is_saved(tmp_path, monkeypatch):
    checked = small("fedmr", 3)
    with Run(checked, tmp_path / "run") as run:
        next(iter(run.execute()))

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedmr_merge.flower.reply_files.write_all", refuse)
        with pytest.raises(RunError, match="the disk is full; rounds 1 to 1 are saved"):
            on_nodes(tmp_path / "run", checked)
    follow(tmp_path / "here", checked)
    on_nodes(tmp_path / "run", checked)
    assert models(tmp_path / "run") == models(tmp_path / "here")


def test_bfloat16_travels_as_it_is(tmp_path):
    checked = small("fedmr", 2, model={"name": "half_model:Half"})
    follow(tmp_path / "here", checked)
    grid = on_nodes(tmp_path / "nodes", checked)
    assert models(tmp_path / "nodes") == models(tmp_path / "here")
    for message in grid.sent:
        assert {array.dtype for array in message.content["model"].values()} == {"bfloat16"}


FROZEN = """
from dataclasses import dataclass
from fedmr_merge.federated.models.cnn import Cnn

@dataclass(frozen=True)
class Adapted(Cnn):
    \"\"\"A network of which only the last layer is trained.\"\"\"

    def build(self, *arguments):
        module = super().build(*arguments)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name.startswith("fc2"))
        return module
"""


def test_frozen_weights_stay_where_they_are(tmp_path, monkeypatch):
    """Only what is trained travels; the bytes of the run are the same, also when it is resumed."""
    (tmp_path / "adapted_model.py").write_text(FROZEN)
    monkeypatch.syspath_prepend(tmp_path)
    checked = small("fedmr", 3, model={"name": "adapted_model:Adapted"})
    follow(tmp_path / "here", checked)
    with Run(checked, tmp_path / "nodes") as run:
        next(iter(run.execute()))
    grid = on_nodes(tmp_path / "nodes", checked)
    assert models(tmp_path / "nodes") == models(tmp_path / "here")
    for message in grid.sent:
        assert set(message.content["model"]) == {"fc2.weight", "fc2.bias"}
    whole = sum(tensor.nbytes for tensor in run.federation.module.state_dict().values())
    for recorded in lines(tmp_path / "nodes", DEPLOYMENT):
        assert recorded["bytes_sent"] == recorded["bytes_received"] < 3 * whole / 10


def test_a_client_with_other_frozen_weights_refuses_to_train(tmp_path, monkeypatch):
    (tmp_path / "adapted_other.py").write_text(FROZEN)
    monkeypatch.syspath_prepend(tmp_path)
    checked = small("fedmr", 1, model={"name": "adapted_other:Adapted"})
    on_nodes(tmp_path / "run", checked, {f"client-{client}": silent for client in range(CLIENTS)})
    grid = StandInGrid({f"client-{client}": silent for client in range(CLIENTS)})
    with Run(checked, tmp_path / "other", engine=FlowerEngine(grid, checked)) as run:
        next(iter(run.execute()))
    content = grid.sent[0].content
    content["facts"]["base"] = "0" * 64
    with pytest.raises(TrainingError, match=r"frozen weights have the hash '000000000000', those of this machine '"):
        answer(content, checked)


def test_a_client_that_diverges_is_handled_as_in_one_process(tmp_path):
    checked = small("fedmr", 1, training={"lr": 1e30, "on_divergence": "keep"})
    reasons = []
    for folder, options in (
        ("here", {}),
        ("nodes", {"engine": FlowerEngine(StandInGrid(everybody(checked, 4)), checked)}),
    ):
        with pytest.raises(TrainingError, match="diverged in round 1") as error:
            follow(tmp_path / folder, checked, **options)
        reasons.append(str(error.value))
    assert reasons[0] == reasons[1]
