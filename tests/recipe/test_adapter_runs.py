"""Runs of adapters: resumed to the byte, refused with another base, and what comes out recombines and is published."""

from __future__ import annotations

import json
import shutil
import signal
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

# transformers imports torchvision where it is installed: this import of it works beside any torch.
from fedmr_merge.federated.models._torchvision import torchvision  # noqa: F401

transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
peft = pytest.importorskip("peft", reason="needs the extra adapters")

from huggingface_hub import constants  # noqa: E402
from program import Program  # noqa: E402
from small_run import command  # noqa: E402

from fedmr_merge.checkpoint.open import open_checkpoint  # noqa: E402
from fedmr_merge.checkpoint.tensors import load_tensors, save_tensors  # noqa: E402
from fedmr_merge.errors import RunError  # noqa: E402
from fedmr_merge.publish.load import load_model  # noqa: E402
from fedmr_merge.recipe.run import Run  # noqa: E402
from fedmr_merge.recipe.schema import parse_recipe  # noqa: E402

WORDS = {"sea": "ship wave salt fish", "sky": "bird wing wind star"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder, and texts of two classes."""
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=258,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(folder / "bert")
    rows = [{"text": words[i % 12 :], "label": label} for i in range(24) for label, words in WORDS.items()]
    for part, some in (("train", rows[:40]), ("test", rows[40:])):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def recipe(folder: Path, base: str = "bert") -> dict[str, Any]:
    return {
        "name": "adapters",
        "data": {
            "name": "text",
            "path": str(folder),
            "text_column": "text",
            "label_column": "label",
            "length": 12,
            "partition": {"kind": "iid", "clients": 3},
        },
        "model": {"name": f"transformers:{folder / base}", "adapter": {"r": 2, "target_modules": ["query", "value"]}},
        "training": {"clients_per_round": 2, "local_epochs": 1, "batch_size": 8, "lr": 0.1},
        "stages": [{"fedavg": {"rounds": 1}}, {"fedmr": {"rounds": 2}}, {"publish": {"what": "both"}}],
    }


def follow(raw: dict[str, Any], out: Path, events: int | None = None) -> None:
    with Run(parse_recipe(raw, "r.yaml"), out) as run:
        list(islice(run.execute(), events))


def contents(folder: Path) -> dict[str, bytes]:
    names = ("*.safetensors", "state.json", "adapter_config.json", "config.json", "lineage.jsonl")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for name in names for path in folder.rglob(name)}


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "whole"
    follow(recipe(folder), out)
    return out


def test_an_interrupted_run_ends_with_the_same_bytes(folder, whole, tmp_path):
    for _ in range(4):
        follow(recipe(folder), tmp_path / "parts", 1)
    assert contents(tmp_path / "parts") == contents(whole)
    assert [path.name for path in whole.glob("checkpoints/1-*/slot-*/*")].count("adapter_model.safetensors") == 1


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_bytes(folder, whole, tmp_path):
    raw = recipe(folder)
    (tmp_path / "adapters.yaml").write_text(json.dumps(raw))
    process = Program("run", "adapters.yaml", "--out", "run", cwd=tmp_path)
    deadline = time.monotonic() + 100
    while process.is_running and not list(tmp_path.glob("run/checkpoints/*/state.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL, "it was over before it could be killed"
    follow(raw, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(whole)


def test_another_base_is_refused_by_its_files(folder, tmp_path):
    base = tmp_path / "bert"
    shutil.copytree(folder / "bert", base)
    raw = recipe(tmp_path) | {"data": recipe(folder)["data"]}
    follow(raw, tmp_path / "run", 1)
    weights = load_tensors(folder / "bert" / "model.safetensors")
    changed = {name: tensor + 1 for name, tensor in weights.items()}
    save_tensors(base / "model.safetensors", changed, {"format": "pt"})
    with pytest.raises(RunError, match=r"began with another model bert: model\.safetensors differs") as caught:
        follow(raw, tmp_path / "run")
    assert caught.value.hint


def test_slots_are_recombined_and_loaded_by_peft(folder, whole, tmp_path):
    slots = sorted((whole / "global").glob("slot-*"))
    assert command("recombine", *slots, "-o", tmp_path / "out", "--seed", 1) == 0
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "bert", num_labels=2)
    for slot in sorted((tmp_path / "out").glob("slot-*")):
        peft.PeftModel.from_pretrained(base, slot)
    assert command("average", *slots, "-o", tmp_path / "mean", "--exact") == 0


def test_what_is_published_says_nothing_of_this_machine(folder, whole):
    published = whole / "global"
    assert open_checkpoint(published).shapes
    for path in published.rglob("*"):
        if path.is_file() and path.suffix != ".png":
            assert str(folder).encode() not in path.read_bytes(), path
    card = (published / "README.md").read_text()
    assert "library_name: peft" in card
    config = json.loads((published / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "bert"


def test_load_model_builds_the_base_and_the_adapter(folder, whole, monkeypatch):
    monkeypatch.chdir(folder)
    model = load_model(whole / "global")
    assert model(**model.preprocess("ship")).shape == (1, 2)


def test_a_base_of_the_hub_is_fetched_and_named(folder, tmp_path, hub, monkeypatch):
    hub.become_default(monkeypatch)
    files = {path.name: path.read_bytes() for path in (folder / "bert").iterdir()}
    hub.add_repo("org/bert", {**files, "pytorch_model.bin": b"never fetched", "modeling.py": b"raise SystemExit"})
    raw = recipe(folder)
    raw["model"]["name"] = "transformers:org/bert"
    raw["stages"] = [{"fedmr": {"rounds": 1}}, {"publish": {}}]
    follow(raw, tmp_path / "run")
    published = tmp_path / "run" / "global"
    config = json.loads((published / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/bert"
    assert len(config["revision"]) == 40  # the commit, whatever is pushed there later
    card = (published / "README.md").read_text()
    assert 'base_model:\n- "org/bert"\nbase_model_relation: adapter\n' in card
    environment = json.loads((published / "environment.json").read_text())
    assert {"transformers", "tokenizers", "peft"} & environment["packages"].keys() == {"transformers", "peft"}
    base = environment["base_model"]
    assert base["origin"].startswith("org/bert@")
    assert base["sha256"].keys() == {"config.json", "model.safetensors"}
    cached = {path.name for path in Path(constants.HF_HUB_CACHE).rglob("snapshots/*/*")}
    assert not cached & {"pytorch_model.bin", "modeling.py"}
    model = load_model(published)
    assert model(**model.preprocess("ship")).shape == (1, 2)
