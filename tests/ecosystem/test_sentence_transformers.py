"""sentence-transformers loads what was made of its models, with modules in folders of their own, and encodes as a merge
by hand does.

Needs the extra `ecosystem`; skipped without it. Models are tiny and random: nothing is fetched.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

# transformers imports torchvision where it is installed: this import of it works beside any torch.
from fedmr_merge.federated.models._torchvision import torchvision  # noqa: F401

transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")

from small_run import command  # noqa: E402

from fedmr_merge.recombination.layouts.files import FilesLayout  # noqa: E402
from fedmr_merge.recombination.options import OutputOptions, PlanOptions  # noqa: E402
from fedmr_merge.recombination.recombine import recombine  # noqa: E402

SLOTS = 3
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "layers", "are", "shuffled", "over", "models", "and", "mean"]
TEXTS = ["layers are shuffled", "over models and mean", "mean models are layers"]


def save(folder: Path, seed: int, dense: bool) -> Path:
    """Save a model of a transformer, a pooling and a normalisation, at will with a linear layer between them."""
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes))
    plain = folder.with_name(f"{folder.name}-plain")
    bert.save_pretrained(plain)
    (plain / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(plain / "vocab.txt")).save_pretrained(plain)
    transformer = modules.Transformer(str(plain))
    parts = [transformer, modules.Pooling(16, "mean"), *([modules.Dense(16, 8)] if dense else []), modules.Normalize()]
    model = sentence_transformers.SentenceTransformer(modules=parts, device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save(str(folder))
    return folder


def load(folder: Path) -> Any:
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.mark.parametrize(("dense", "shard_bytes"), [(False, None), (True, None), (True, 4000)])
def test_outputs_load_and_encode_as_a_merge_by_hand(dense: bool, shard_bytes: int | None, tmp_path: Path) -> None:
    paths = [save(tmp_path / f"m{slot}", slot, dense) for slot in range(SLOTS)]
    recombine(paths, tmp_path / "out", PlanOptions("auto"), OutputOptions(layout=FilesLayout(shard_bytes)))
    assert command("--quiet", "average", *paths, "-o", tmp_path / "mean") == 0
    originals = [load(path) for path in paths]
    tensors = [original.state_dict() for original in originals]
    for slot in range(SLOTS):
        found = load(tmp_path / "out" / f"slot-{slot:02d}")
        assert [type(module) for module in found] == [type(module) for module in originals[0]]
        assert found.encode(TEXTS).shape == (len(TEXTS), 8 if dense else 16)
        for name, tensor in found.state_dict().items():
            assert any(torch.equal(tensor, original[name]) for original in tensors), name
    by_hand = originals[0]
    by_hand.load_state_dict({name: sum(original[name] for original in tensors) / SLOTS for name in tensors[0]})
    expected = torch.from_numpy(by_hand.encode(TEXTS))
    for folder in ("mean", "out/global"):
        torch.testing.assert_close(torch.from_numpy(load(tmp_path / folder).encode(TEXTS)), expected)


def test_a_model_of_an_older_version_fits_one_of_today(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"m{slot}", slot, dense=False) for slot in range(2)]
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (paths[0] / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (paths[0] / "2_Normalize" / "config.json").unlink()  # older versions write nothing there, and the Hub keeps no
    (paths[0] / "2_Normalize").rmdir()  # empty folders
    recombine(paths, tmp_path / "out", PlanOptions("auto"))
    assert load(tmp_path / "out" / "slot-01").encode(TEXTS).shape == (3, 16)


def routed(seed: int) -> list[Any]:
    """Return the parts of a model without a transformer: queries and documents take different modules."""
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(WORDS, range(99), strict=False)), "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    torch.manual_seed(seed)
    queries, documents = ([modules.StaticEmbedding(tokenizer, embedding_dim=8)] for _ in range(2))
    return [modules.Router.for_query_document(queries, [*documents, modules.LayerNorm(8), modules.Dense(8, 8)])]


def test_modules_that_a_router_names_are_merged_too(tmp_path: Path) -> None:
    for slot in range(2):
        model = sentence_transformers.SentenceTransformer(modules=routed(slot), device="cpu")
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        model.save(str(tmp_path / f"m{slot}"))
    recombine([tmp_path / "m0", tmp_path / "m1"], tmp_path / "out", PlanOptions("auto"))
    by_hand, other = load(tmp_path / "m0"), load(tmp_path / "m1").state_dict()
    by_hand.load_state_dict({name: (tensor + other[name]) / 2 for name, tensor in by_hand.state_dict().items()})
    mean = load(tmp_path / "out" / "global")
    for task in ("query", "document"):
        found, expected = (torch.from_numpy(model.encode(TEXTS, task=task)) for model in (mean, by_hand))
        torch.testing.assert_close(found, expected)
