"""Mutated run folders, recipes, settings, partition files, sweep files and sweep folders, under what reads them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import small_runs
import yaml
from attempts import BATCHES, Outcome, attempt, contents, difference, numbers, torture
from mutation import RAW_YAML, mutated_json, mutated_string, mutated_yaml, mutator
from small_run import command

pytestmark = [pytest.mark.torture, pytest.mark.parametrize("batch", range(BATCHES))]
FINISHED = {"stages": [{"fedmr": {"rounds": 2}}, {"evaluate": {}}, {"publish": {"what": "both", "license": "mit"}}]}
RECIPE = {
    "name": "all",
    "seed": 1,
    "data": {"name": "digits", "partition": {"kind": "dirichlet", "clients": 20, "alpha": 0.5}},
    "model": {"name": "cnn"},
    "training": {
        **{
            "clients_per_round": 2,
            "local_epochs": 1,
            "batch_size": 20,
            "lr": 0.05,
            "momentum": 0.5,
            "weight_decay": 0.1,
        },
        **{"device": "cpu", "last_batch": "drop"},
    },
    "stages": [
        {"fedavg": {"rounds": 1}},
        {"fedprox": {"rounds": 1, "mu": 0.01}},
        {"fedmr": {"rounds": 2, "rule": "layer"}},
        {"evaluate": {}},
        {"publish": {"what": "both", "license": "mit", "tags": ["a"]}},
    ],
}
PATHS = [
    *("name", "seed", "data.name", "data.partition.alpha", "data.partition.clients", "model.init", "training.lr"),
    *(
        "training.privacy",
        "training.privacy.clip",
        "training.batch_size",
        "training.local_epochs",
        "stages[0]",
        "stages",
    ),
    *("stages[1].fedprox.mu", "stages[2].fedmr.rule", "stages[4].publish.repo", "stages[99]", "x.y", "", "[", "a[0].b"),
]
SWEEP = {
    "name": "few",
    "recipe": "tiny.yaml",
    "seeds": [0, 1],
    "axes": {
        "data.partition.clients": [60, 70],
        "method": {
            "FedAvg": {"stages": [{"fedavg": {"rounds": 2}}]},
            "FedMR": {"stages": [{"fedavg": {"rounds": 1}}, {"fedmr": {"rounds": 1}}]},
        },
    },
    "when": [{"if": {"method": "FedMR"}, "set": {"training.lr": 0.02}}],
    "exclude": [{"method": "FedMR", "clients": "clients=70"}],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interrupted run, how it ends, a finished run with what it publishes; a sweep of finished runs; files."""
    folder = tmp_path_factory.mktemp("runs")
    with small_runs.Run(small_runs.recipe(), folder / "interrupted") as run:
        events = run.execute()
        next(events), next(events)
        events.close()
    small_runs.follow(folder / "whole", small_runs.recipe())
    small_runs.follow(folder / "finished", small_runs.recipe(**FINISHED))
    for name, content in {"tiny": small_runs.RECIPE, "all": RECIPE, "sweep": SWEEP}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "finished.yaml").write_text(yaml.safe_dump(small_runs.RECIPE | FINISHED))
    clients = [list(range(40 * client, 40 * client + 40)) for client in range(30)]
    (folder / "partition.json").write_text(json.dumps({"format_version": 1, "clients": clients}))
    (folder / "list.json").write_text(json.dumps(clients))
    (folder / "authors.json").write_text(json.dumps({"train_data": {str(i): each for i, each in enumerate(clients)}}))
    only = ["--only", "FedAvg,clients=60"]
    assert command("--quiet", "sweep", folder / "sweep.yaml", *only, "-o", folder / "sweep") == 0
    return folder


def pick(folder: Path, draw: random.Random, but: tuple[str, ...] = ()) -> Path:
    """Draw one of a folder's files: its own more often than those below it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (".lock", *but)]
    return draw.choice([*files, *[path for path in files if path.parent == folder] * 3])


def mutate(path: Path, draw: random.Random) -> None:
    path.write_bytes(mutator(path.name)(path.read_bytes(), draw))


def interrupted(place: Path, scratch: Path, draw: random.Random) -> str | Outcome:
    run = Path(shutil.copytree(place / "interrupted", scratch / "run"))
    for _ in range(draw.choice((1, 1, 1, 2))):
        mutate(pick(run, draw), draw)
    before = contents(run)
    outcome = attempt(["run", place / "tiny.yaml", "-o", run])
    if outcome.code == 0 and small_runs.models(run) != small_runs.models(place / "whole"):
        return f"exit code 0, but the models are not those of the whole run: {outcome.errors}"
    return (difference(before, contents(run)) if outcome.code else None) or outcome


def finished(place: Path, scratch: Path, draw: random.Random) -> str | Outcome:
    run, out = Path(shutil.copytree(place / "finished", scratch / "run")), scratch / "out"
    mutate(pick(run, draw), draw)
    words: list[object] = draw.choice(
        [
            ["run", place / "finished.yaml", "-o", run],
            ["run", run, "--dry-run"],
            *[["compare", run, place / "finished"]] * 3,
            ["compare", run / "global"],
            ["card", run],
            ["card", run / "global", "--preview"],
            ["push", run, "alice/x", "--dry-run"],
            ["recombine", run / "cohort" / "*", run / "global" / "slot-0*", "--dry-run"],
            ["inspect", run / "global"],
            ["report", run, "-o", out] if draw.random() < 0.2 else ["compare", run, run],
        ]
    )
    before = contents(run)
    outcome = attempt(words)
    if outcome.code and out.exists():
        return f"exit code {outcome.code}, and yet it wrote {out.name}"
    # A run writes again what it publishes where that is not what it wrote.
    writes = outcome.code == 0 and (words[0] == "card" or (words[0] == "run" and "--dry-run" not in words))
    return (None if writes else difference(before, contents(run))) or outcome


def dry(file: Path, draw: random.Random) -> list[object]:
    return draw.choice([["run", file, "--dry-run"]] * 8 + [["partition", file, "-o", file.parent / "out.png"]])


def recipes(place: Path, scratch: Path, draw: random.Random) -> str | Outcome:
    file = scratch / "recipe.yaml"
    file.write_bytes(mutated_yaml((place / "all.yaml").read_bytes(), draw))
    return attempt(dry(file, draw))


def settings(place: Path, scratch: Path, draw: random.Random) -> str | Outcome:
    path = draw.choice(PATHS) if draw.random() < 0.7 else mutated_string(draw.choice(PATHS), draw)
    value = draw.choice([*RAW_YAML, "0.5", "3", "digits", "{kind: iid, clients: 3}", "[{fedavg: {rounds: 2}}]"])
    return attempt(["run", place / "all.yaml", "--dry-run", "--set", f"{path}={value}"])


def partitions(place: Path, scratch: Path, draw: random.Random) -> str | Outcome:
    file = scratch / "partition.json"
    content = (place / draw.choice(("partition.json", "list.json", "authors.json"))).read_bytes()
    file.write_bytes(mutated_json(content, draw))
    recipe = scratch / "recipe.yaml"
    data = {"name": "digits", "partition": {"kind": "file", "path": str(file)}}
    recipe.write_text(yaml.safe_dump(small_runs.RECIPE | {"data": data}))
    return attempt(dry(recipe, draw))


def sweep_files(place: Path, scratch: Path, draw: random.Random) -> str | Outcome:
    file = scratch / "sweep.yaml"
    shutil.copyfile(place / "tiny.yaml", scratch / "tiny.yaml")
    file.write_bytes(mutated_yaml((place / "sweep.yaml").read_bytes(), draw))
    return attempt(["sweep", file, "--dry-run", *draw.choice(([], [], ["--only", "FedMR"], ["--seeds", "0,5"]))])


def sweep_folders(place: Path, scratch: Path, draw: random.Random) -> str | Outcome:
    sweep = Path(shutil.copytree(place / "sweep", scratch / "sweep"))
    own = [path for path in sorted(sweep.rglob("*.json")) if path.parent.parent.name != "runs"]
    mutate(draw.choice(own) if draw.random() < 0.6 else pick(sweep, draw), draw)
    before, out = contents(sweep), scratch / "out"
    words: list[object] = draw.choice(
        [
            *[["compare", sweep]] * 4,
            ["compare", sweep, "--target", "0.5"],
            ["sweep", place / "sweep.yaml", "-o", sweep, "--dry-run"],
            ["report", sweep, "-o", out] if draw.random() < 0.2 else ["compare", sweep / "runs"],
        ]
    )
    outcome = attempt(words)
    return difference(before, contents(sweep)) or outcome


KINDS: dict[str, Callable[[Path, Path, random.Random], str | Outcome]] = {
    "interrupted runs": interrupted,
    "finished runs": finished,
    "recipes": recipes,
    "settings": settings,
    "partition files": partitions,
    "sweep files": sweep_files,
    "sweep folders": sweep_folders,
}


@pytest.mark.parametrize("kind", KINDS)
def test_mutated(
    kind: str,
    batch: int,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A command ends with 0 and what is right, or with 2 and what is wrong; nothing is half-written or changed."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    before = contents(place)

    def one(draw: random.Random) -> str | Outcome:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        try:
            return KINDS[kind](place, scratch, draw)
        finally:
            shutil.rmtree(scratch)

    torture("mutated files", kind, numbers(batch, BATCHES), one)
    assert difference(before, contents(place)) is None
