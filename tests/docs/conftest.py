"""What the pages of the documentation take to be there when a reader begins with them."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from docs_pages import ROOT
from hub_server import HubServer
from PIL import Image
from small_checkpoints import LINEAR, file_bytes, model, write, write_folder
from small_run import RECIPE, follow

from fedmr_merge import recombine

# transformers imports torchvision where it is installed: this import of it works beside any torch.
from fedmr_merge.federated.models._torchvision import torchvision  # noqa: F401

#: A language model as transformers saves it. The output head is tied to the embedding, so that the file lacks it.
LANGUAGE_MODEL: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "model.embed_tokens.weight": ("F32", (12, 8)),
    **{
        f"model.layers.{i}.{name}.weight": ("F32", shape)
        for i in range(2)
        for name, shape in {
            "self_attn.q_proj": (8, 8),
            "self_attn.o_proj": (8, 8),
            "mlp.up_proj": (16, 8),
            "mlp.down_proj": (8, 16),
            "input_layernorm": (8,),
            "post_attention_layernorm": (8,),
        }.items()
    },
    "model.norm.weight": ("F32", (8,)),
}
SIDECARS = {
    "config.json": json.dumps({"model_type": "llama", "num_hidden_layers": 2, "tie_word_embeddings": True}),
    "generation_config.json": json.dumps({"eos_token_id": 2}),
    "tokenizer.json": "{}",
}
CONVOLUTION: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "conv1.weight": ("F32", (4, 3, 3, 3)),
    "conv1.bias": ("F32", (4,)),
    **LINEAR,
}


@pytest.fixture
def world(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A working folder and a Hub of its own; call it with a page to make what the page takes to be there."""
    folder = tmp_path / "page"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)  # for the command `hf`
    hub.become_default(monkeypatch)
    # `run --dry-run`, typed in this process before, has put the libraries offline.
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(gc, "disable", lambda: None)
    hub.add_user("hf_alice", "alice", orgs={"bob": "write", "ORG": "write"})
    makers = {
        "README.md": (_checkpoints, _image),
        "docs/recombine.md": (_language_models,),
        "docs/hub.md": (_trained, _recombined, _cohort, _image),
        "recipes/paper/README.md": (_recipes,),
    }

    def make(page: Path) -> None:
        for maker in makers.get(page.relative_to(ROOT).as_posix(), ()):
            maker(folder, hub)

    return make


def _checkpoints(folder: Path, hub: HubServer) -> None:
    for i, name in enumerate("abc"):
        write(folder / "ckpts" / f"{name}.safetensors", model(i, CONVOLUTION))
    hub.add_repo("org/model", {"model.safetensors": file_bytes(model(3, CONVOLUTION))})


def _language_models(folder: Path, hub: HubServer) -> None:
    for i, name in enumerate(("alice", "bob", "carol")):
        write_folder(folder / "models" / name, model(i, LANGUAGE_MODEL), SIDECARS)


def _image(folder: Path, hub: HubServer) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    Image.fromarray(pixels).save(folder / "seven.png")


def _trained(folder: Path, hub: HubServer) -> None:
    follow(folder / "runs" / "digits", name="digits", stages=[*RECIPE["stages"][:2], {"publish": {}}])


def _recombined(folder: Path, hub: HubServer) -> None:
    models = [write(folder / "models" / f"{i}.safetensors", model(i, CONVOLUTION)) for i in range(3)]
    recombine(models, folder / "recombined")


def _cohort(folder: Path, hub: HubServer) -> None:
    """Put a cohort on the Hub, as a recipe's `publish` stage does after 100 rounds."""
    repo = hub.add_repo("alice/cohort")
    slots = {f"slot-{i:02d}/model.safetensors": file_bytes(model(i, CONVOLUTION)) for i in range(3)}
    repo.commit("refs/heads/round-000100", "round 100", hub.store(slots), None)


def _recipes(folder: Path, hub: HubServer) -> None:
    shutil.copytree(ROOT / "recipes", folder / "recipes")
