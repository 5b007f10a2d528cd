"""LoRA over nodes: the adapters travel, the model below them stays where each machine has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_runs import follow, models
from stand_in_grid import StandInGrid, everybody

# transformers imports torchvision where it is installed: this import of it works beside any torch.
from fedmr_merge.federated.models._torchvision import torchvision  # noqa: F401

transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
pytest.importorskip("peft", reason="needs the extra adapters")

from fedmr_merge.checkpoint.tensors import load_tensors, save_tensors  # noqa: E402
from fedmr_merge.errors import TrainingError  # noqa: E402
from fedmr_merge.flower.client import answer  # noqa: E402
from fedmr_merge.flower.engine import FlowerEngine  # noqa: E402
from fedmr_merge.flower.rehearsal import CONNECTION, Rehearsal  # noqa: E402
from fedmr_merge.flower.server import ServerOptions  # noqa: E402
from fedmr_merge.flower.submit import submit  # noqa: E402
from fedmr_merge.recipe.run import Run  # noqa: E402
from fedmr_merge.recipe.schema import Recipe, parse_recipe  # noqa: E402

WORDS = {"sea": "ship wave salt fish", "sky": "bird wing wind star"}
CLIENTS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that is far larger than its adapters, and texts of two classes."""
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    config = transformers.BertConfig(vocab_size=258, max_position_embeddings=16, **sizes)
    transformers.BertModel(config).save_pretrained(folder / "bert")
    rows = [{"text": words[i % 12 :], "label": label} for i in range(24) for label, words in WORDS.items()]
    for part, some in (("train", rows[:40]), ("test", rows[40:])):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def recipe(folder: Path, timeout_seconds: float = 0.2, **changes) -> Recipe:
    texts = {"text_column": "text", "label_column": "label", "length": 12}
    content = {
        "name": "adapters",
        "seed": 2,
        "data": {"name": "text", "path": str(folder), "partition": {"kind": "iid", "clients": CLIENTS}, **texts},
        "model": {
            "name": f"transformers:{folder / 'bert'}",
            "adapter": {"r": 2, "target_modules": ["query", "value"]},
        },
        "training": {"clients_per_round": 2, "local_epochs": 1, "batch_size": 8, "lr": 0.1},
        "stages": [{"fedavg": {"rounds": 1}}, {"fedmr": {"rounds": 2, "rule": "lora"}}, {"evaluate": {}}],
        "deployment": {"timeout_seconds": timeout_seconds},
    }
    return parse_recipe(content | changes, "recipe.yaml")


def is_of_the_adapter(name: str) -> bool:
    return ".lora_" in name or name.startswith("base_model.model.classifier.")


def require_same_run(folder: Path, found: Path, expected: Path) -> None:
    assert models(found) == models(expected)
    for name in ("lineage.jsonl", "partition.json", "evaluation.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    base = (folder / "bert" / "model.safetensors").stat().st_size
    for line in (found / "deployment.jsonl").read_text().splitlines():
        recorded = json.loads(line)
        assert 0 < recorded["bytes_sent"] == recorded["bytes_received"] < base / 15


def test_adapters_over_nodes_have_the_bytes_of_a_run_in_one_process_and_nothing_else_travels(folder, tmp_path):
    checked = recipe(folder)
    follow(tmp_path / "here", checked)
    with Run(checked, tmp_path / "nodes") as run:
        next(iter(run.execute()))  # the first round in one process, the others at nodes
    replies = []

    def listen(message, node):
        [reply] = node(message)
        replies.append(reply)
        return [reply]

    nodes = {
        name: (lambda message, node=node: listen(message, node)) for name, node in everybody(checked, CLIENTS).items()
    }
    grid = StandInGrid(nodes)
    follow(tmp_path / "nodes", checked, engine=FlowerEngine(grid, checked, tmp_path))
    require_same_run(folder, tmp_path / "nodes", tmp_path / "here")
    assert len(grid.sent) == len(replies) == 4
    for message in (*grid.sent, *replies):
        assert set(message.content) == {"facts", "model"}
        assert len(message.content["model"]) == 2 * 2 * 2 + 2  # A and B of two layers' queries and values, and the head
        assert all(map(is_of_the_adapter, message.content["model"]))


def test_a_client_with_another_model_below_the_adapter_refuses_to_train(folder, tmp_path):
    checked = recipe(folder, stages=[{"fedmr": {"rounds": 1}}])
    grid = StandInGrid({f"client-{client}": lambda message: [] for client in range(CLIENTS)})
    with Run(checked, tmp_path / "run", engine=FlowerEngine(grid, checked)) as run:
        list(run.execute())
    weights = folder / "bert" / "model.safetensors"
    before = weights.read_bytes()
    tensors = load_tensors(weights)
    tensors["embeddings.word_embeddings.weight"] = tensors["embeddings.word_embeddings.weight"] + 1
    try:
        weights.unlink()
        save_tensors(weights, tensors, {"format": "pt"})
        with pytest.raises(
            TrainingError, match=r"the server's frozen weights have the hash '.*', those of this machine"
        ):
            answer(grid.sent[0].content, checked)
    finally:
        weights.write_bytes(before)
    assert answer(grid.sent[0].content, checked)["facts"]["finite"] is True


@pytest.mark.flower
def test_adapters_over_real_nodes_have_the_bytes_of_a_run_in_one_process(folder, tmp_path):
    checked = recipe(folder, 300)
    follow(tmp_path / "here", checked)
    with Rehearsal([f"client-{client}" for client in range(CLIENTS)]):
        for _ in submit(checked, CONNECTION, ServerOptions(out=str(tmp_path / "run"))):
            pass
    require_same_run(folder, tmp_path / "run", tmp_path / "here")
