"""Recombined models load with their own libraries, run, and hold their sources' parameters.

Needs the extra `ecosystem` (transformers, peft); skipped without it. Models are tiny and random: nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# transformers imports torchvision where it is installed: this import of it works beside any torch.
from fedmr_merge.federated.models._torchvision import torchvision  # noqa: F401

transformers = pytest.importorskip("transformers")

from fedmr_merge.lineage.reader import read_lineage  # noqa: E402
from fedmr_merge.recombination.layouts.files import FilesLayout  # noqa: E402
from fedmr_merge.recombination.layouts.store import StoreLayout  # noqa: E402
from fedmr_merge.recombination.options import OutputOptions, PlanOptions  # noqa: E402
from fedmr_merge.recombination.recombine import recombine  # noqa: E402
from fedmr_merge.recombination.verify import verify  # noqa: E402

SLOTS = 3
TEXT = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def llama(tied: bool) -> Any:
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=2, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config)


def mixtral() -> Any:
    config = transformers.MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config)


def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    return transformers.ViTForImageClassification(config)


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "llama": (lambda: llama(tied=False), "block"),
    "llama tied": (lambda: llama(tied=True), "block"),
    "gpt2": (
        lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=3, n_head=2)),
        "block",
    ),
    "bert": (lambda: transformers.BertForMaskedLM(transformers.BertConfig(**TEXT)), "block"),
    "mixtral": (mixtral, "moe"),
    "vit": (vit, "block"),
}


def sources(make: Callable[[], Any], folder: Path, shard_bytes: int | None) -> list[Path]:
    paths = []
    for slot in range(SLOTS):
        torch.manual_seed(slot)
        model = make()
        for parameter in model.parameters():  # also what starts as ones or zeros is told apart
            torch.nn.init.normal_(parameter, std=0.02)
        options = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
        model.save_pretrained(folder / f"m{slot}", **options)
        paths.append(folder / f"m{slot}")
    return paths


def run(model: Any) -> torch.Tensor:
    if hasattr(model.config, "image_size"):
        return model(torch.zeros(1, 3, 16, 16)).logits
    return model(torch.arange(8)[None]).logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", ["one file", "sharded", "store"])
def test_models_load_run_and_hold_their_sources_parameters(name: str, layout: str, tmp_path: Path) -> None:
    make, rule = MODELS[name]
    paths = sources(make, tmp_path, 5_000 if layout == "sharded" else None)
    if layout == "sharded":
        assert (paths[0] / "model.safetensors.index.json").is_file()
    output = OutputOptions(layout=StoreLayout() if layout == "store" else FilesLayout())
    outcome = recombine(paths, tmp_path / "out", PlanOptions("auto"), output)
    assert outcome.work.grouping.rule == rule
    assert verify(tmp_path / "out").faults == []
    kind = type(make())
    originals = [dict(kind.from_pretrained(path).named_parameters()) for path in paths]
    moved = set()
    for slot in range(SLOTS):
        model = kind.from_pretrained(tmp_path / "out" / f"slot-{slot:02d}").eval()
        with torch.no_grad():
            assert torch.isfinite(run(model)).all()
        for parameter_name, parameter in model.named_parameters():
            owners = parts_owners(parameter, [original[parameter_name] for original in originals])
            assert owners, parameter_name
            moved |= {(slot, owner) for owner in owners}
    assert any(slot != owner for slot, owner in moved)
    mean = kind.from_pretrained(tmp_path / "out" / "global").eval()
    for parameter_name, parameter in mean.named_parameters():
        expected = sum(original[parameter_name] for original in originals) / SLOTS
        torch.testing.assert_close(parameter, expected)


def parts_owners(parameter: torch.Tensor, originals: list[torch.Tensor]) -> set[int]:
    """The slots that a parameter is from; experts, which some versions hold in one tensor, may be of several."""
    whole = {slot for slot, original in enumerate(originals) if torch.equal(parameter, original)}
    if whole or parameter.ndim != 3:
        return whole
    found: set[int] = set()
    for index, expert in enumerate(parameter):
        owners = {slot for slot, original in enumerate(originals) if torch.equal(expert, original[index])}
        if not owners:
            return set()
        found |= owners
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_are_one_and_untied_ones_are_two(tied: bool, tmp_path: Path) -> None:
    paths = sources(lambda: llama(tied), tmp_path, None)
    recombine(paths, tmp_path / "out", PlanOptions("auto", seed=1))
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out" / "slot-00")
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (embedding is head) == tied


def test_experts_move_by_themselves(tmp_path: Path) -> None:
    paths = sources(mixtral, tmp_path, None)
    recombine(paths, tmp_path / "out", PlanOptions("auto"))
    groups = read_lineage(tmp_path / "out").plan.permutations
    assert len({sources for name, sources in groups.items() if ".experts." in name}) > 1


def test_lora_adapters(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = llama(tied=False)
    base.save_pretrained(tmp_path / "base")
    paths = []
    for slot in range(SLOTS):
        torch.manual_seed(slot)
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter)
        adapted.save_pretrained(tmp_path / f"a{slot}")
        paths.append(tmp_path / f"a{slot}")
    outcome = recombine(paths, tmp_path / "out", PlanOptions("auto"))
    assert outcome.work.grouping.rule == "lora"

    def load(path: Path) -> dict[str, torch.Tensor]:
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        adapted = peft.PeftModel.from_pretrained(model, path)
        assert torch.isfinite(run(adapted)).all()
        return {n: p for n, p in adapted.named_parameters() if "lora_" in n}

    originals = [load(path) for path in paths]
    for slot in range(SLOTS):
        found = load(tmp_path / "out" / f"slot-{slot:02d}")
        for parameter_name, parameter in found.items():
            (owner,) = parts_owners(parameter, [original[parameter_name] for original in originals])
            other = parameter_name.replace("lora_A", "lora_B")
            assert torch.equal(found[other], originals[owner][other])  # A and B are one atom
